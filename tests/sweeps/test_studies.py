"""Studies at both scales: they compose, their arms are those of the table, their claims hold on the paper's numbers."""

import copy
import re
from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from common import Squares
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from shrunk import BACKBONE, backbone

from pmf_lightning import build, compose
from pmf_lightning.config.compose import CONF, SCALES
from pmf_lightning.config.groups import groups
from pmf_lightning.profiling.step_memory import dummy_batch
from pmf_lightning.reports.claims import check
from pmf_lightning.reports.study import read_study
from pmf_lightning.utils import rng

STUDIES = sorted(path.parent.name for path in (CONF / "experiment").glob("*/study.yaml"))
GROUPS = groups()
BOTH = pytest.mark.parametrize(("name", "scale"), [(name, scale) for name in STUDIES for scale in SCALES])
DRIFTING = [name for name in STUDIES if name.startswith("drifting_")]
JIT = [name for name in STUDIES if name.startswith("jit_")]
PMF = [name for name in STUDIES if name.startswith(("pmf_", "imf_"))]

# How the papers measure FID.
PROTOCOLS = {"pmf": "pmf_jax", "imf": "pmf_jax", "jit": "jit", "drifting": "drifting", "fd": "jit", "rdm": "jit"}


def swept(name: str, scale: str) -> dict[str, str]:
    """The sweep of an experiment, as its files say it."""
    files = (CONF / "experiment" / name / f"{file}.yaml" for file in ("study", scale))
    params = {}
    for file in files:
        params |= OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params", default={})
    return params


@cache
def composed(name: str, scale: str, groups: tuple[str, ...]) -> DictConfig:
    return compose([f"experiment={name}/{scale}", *groups])


@cache
def arms(name: str, scale: str) -> list[DictConfig]:
    """The configuration of every run of an experiment, in Hydra's order.

    Composing takes a third of a second; overrides that pick no file are therefore set afterwards, as Hydra does.
    """
    parser, found = OverridesParser.create(), []
    overrides = parser.parse_overrides([f"{key}={value}" for key, value in swept(name, scale).items()])
    for job in BasicSweeper.split_arguments(overrides, None)[0]:
        groups = tuple(override for override in job if override.partition("=")[0] in GROUPS)
        cfg = copy.deepcopy(composed(name, scale, groups))
        for override in parser.parse_overrides([override for override in job if override not in groups]):
            OmegaConf.update(cfg, override.key_or_group, override.value())
        found.append(cfg)
    return found


def plain(cfg: DictConfig) -> dict:
    return OmegaConf.to_container(cfg, resolve=True)


@cache
def resolved(name: str, scale: str) -> list[dict]:
    """What ``arms`` come to, references resolved."""
    return [plain(cfg) for cfg in arms(name, scale)]


@BOTH
def test_arms_are_those_of_the_table(name, scale):
    runs = resolved(name, scale)
    study = runs[0]["study"]
    assert (study["name"], study["scale"]) == (name, scale)
    assert sorted(run["study"]["arm"] for run in runs) == sorted(study["arms"])
    for run in runs:
        arm, shown = run["study"]["arm"], run["study"]["columns"]
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", arm)
        assert run["run_dir"] == f"runs/{name}/{scale}/{arm}-seed0"
        assert (run["ckpt"], run["seed"]) == ("auto", 0)
        assert shown
        assert all(value is None or isinstance(value, (str, int, float, list)) for value in shown.values())
    assert len({str(run["study"]["columns"]) for run in runs}) == len(runs), "columns tell the arms apart"


@BOTH
def test_every_run_is_judged_once_at_its_end(name, scale):
    for run in resolved(name, scale):
        assert run["metrics"]["every_images"] >= run["steps"] * run["batch"]
        if scale == "small":
            assert run["study"]["measure"] == "fd"
            assert {"classifier", "extra_steps"} <= run["metrics"].keys(), "metrics=small"
            assert run["data"]["name"] in ("digits", "shapes"), "nothing has to be had first"
        else:
            assert run["study"]["measure"] == "fid"
            assert run["metrics"]["n"] == 50000
            assert run["data"]["classes"] == 1000
            assert run["protocol"]["name"] == PROTOCOLS[name.partition("_")[0]]


@pytest.mark.parametrize("name", STUDIES)
def test_both_scales_compare_the_same(name):
    small, paper = (resolved(name, scale)[0]["study"] for scale in SCALES)
    assert swept(name, "small").keys() == swept(name, "paper").keys()
    assert small["arms"] == paper["arms"]
    assert small["claims"] == paper["claims"]
    assert small["paper_measure"] == paper["paper_measure"]
    assert "Small:" in small["note"], "the note says what stands for what"


@pytest.mark.parametrize("name", STUDIES)
def test_claims_hold_on_the_numbers_of_the_paper(name):
    study = read_study(resolved(name, "small")[0]["study"], name)
    assert study.link is not None
    assert study.claims
    numbers = {arm: [value] for arm, value in study.paper.items()}
    for claim in study.claims:
        if claim.of is None:
            finding = check(claim, numbers, study.measure)
            unknown = [arm for arm in claim.arms if study.paper[arm] is None]
            assert finding.holds is True or (unknown and finding.holds is None), claim.says


@pytest.mark.parametrize("name", STUDIES)
def test_headers_give_the_command(name):
    for file in ("study", *SCALES):
        first = " ".join((CONF / "experiment" / name / f"{file}.yaml").read_text().splitlines()[:6])
        assert f"python -m pmf_lightning.train -m experiment={name}" in first
        assert ("scale=paper" in first) == (file != "small")


def shrink(cfg: DictConfig) -> None:
    """Make the network tiny; what kind it is stays."""
    for override in OverridesParser.create().parse_overrides([*BACKBONE, "backbone.context_start=0"]):
        if OmegaConf.select(cfg, override.key_or_group) is not None:
            OmegaConf.update(cfg, override.key_or_group, override.value())


def step(cfg: DictConfig) -> None:
    """Build an arm with a tiny network and let it take a step on made-up images."""
    cfg = copy.deepcopy(cfg)
    shrink(cfg)
    if "affinity_floor" in cfg.objective:
        cfg.objective.affinity_floor = 1e-6  # without it, made-up images are too far to attract at low temperatures
    module = build(cfg)
    network, objective = module.network, module.objective
    shape = (network.channels, network.resolution, network.resolution)
    empty = dummy_batch(objective, 4, real_counts=(2, 1))
    made_up = {}
    for field in fields(empty):
        value = getattr(empty, field.name)
        if field.name == "shape":
            made_up["shape"] = shape
        elif field.name not in ("y", "conditions"):
            numbers = rng.normal_images("tests", field.name, rows=torch.arange(value.numel()), shape=shape)
            made_up[field.name] = numbers.view(*value.shape[:-3], *shape)
    batch = replace(empty, **made_up)
    request, (counted, encoders) = objective.encoder_request, objective.counted()
    if request and request.target:
        objective = counted  # its encoders have references of real images
    elif request and (names := request.names):
        assert set(names) <= cfg.features.keys()
        encoders = {name: Squares(8) for name in names}
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] or 1e-6  # a warm-up begins at 0, and the base of a study stays there
    before = {key: value.clone() for key, value in network.state_dict().items()}
    losses = objective(network, batch, objective.draw(batch, 0, 0), encoders)
    losses.total.backward()
    optimizer.step()
    after = network.state_dict()
    assert losses.total.isfinite()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in after)


@pytest.mark.slow
@BOTH
def test_an_arm_takes_a_step(name, scale):
    """The last one, which is another than the default's."""
    step(arms(name, scale)[-1])


@pytest.mark.slow
@BOTH
def test_every_arm_takes_a_step(name, scale):
    for cfg in arms(name, scale):
        step(cfg)


# What these studies bind, beside where it comes from


@cache
def preset(model: str) -> dict:
    return plain(compose([f"model={model}", "data=imagenet256"]))


def same_recipe(run: dict, other: dict, but: tuple[str, ...] = ()) -> None:
    for part in ("backbone", "objective", "sampling", "optimizer", "ema", "schedule", "conditions", "batch"):
        if isinstance(run[part], dict):
            wrong = {key for key in run[part].keys() | other[part].keys() if run[part].get(key) != other[part].get(key)}
            assert {f"{part}.{key}" for key in wrong} <= set(but)
        else:
            assert run[part] == other[part]


@pytest.mark.parametrize(("size", "model"), [("b", "pmf_b16"), ("l", "pmf_l16"), ("h", "pmf_h16")])
def test_sizes_of_table_5_are_the_presets_by_one_recipe(size, model):
    """The preset of H is that of the long run of table 6: other noise, times, threshold and law of omega."""
    long_run = ("noise_scale", "P_mean", "omega_beta", "uniform_fraction", "t_thr") if size == "h" else ()
    for cfg in arms("pmf_table5", "paper"):
        if cfg.study.vary.size == size:
            same_recipe(
                plain(cfg), preset(model), but=("backbone.bottleneck", *(f"objective.{name}" for name in long_run))
            )
            objective = cfg.objective
            recipe = (objective.noise_scale, objective.P_mean, objective.P_std, objective.uniform_fraction)
            assert (*recipe, objective.t_thr) == (1, 0.8, 0.8, 0, 0.8)  # of the paper's table 8, at 256 pixels
            assert objective.omega_beta == {"b": 1, "l": 2, "h": 2}[size]
            epochs = {"short": 160, "long": 320}[cfg.study.vary.length]
            assert cfg.images == epochs * 1_281_167


@pytest.mark.parametrize("name", DRIFTING)
def test_the_ablations_of_drifting_are_those_of_the_official_run(name):
    """Its README: best at guidance 2.0, 64 new images a step on each of 16 hosts; its config: the scales tried."""
    for cfg in arms(name, "paper"):
        assert cfg.sampling.omega == 2
        assert cfg.queues.push_per_step == 16 * 64
        assert list(cfg.search.omega) == [1, 1.5, 2, 2.5, 3, 3.5]


@pytest.mark.parametrize("name", [*JIT, "imf_steps"])
def test_the_guidance_of_the_paper_is_searched(name):
    cfg = composed(name, "paper", ())
    assert cfg.sampling.omega in cfg.search.omega
    if name in JIT:  # guided at all times, but for table 4
        assert [cfg.sampling.t_min, cfg.sampling.t_max] in cfg.search.intervals
        assert len(cfg.search.intervals) == (2 if name == "jit_table4" else 1)
        assert cfg.backbone.attention == ("plain" if name in ("jit_table2", "jit_table3") else "fused"), "eps, v"


def test_resolutions_of_table_4_are_the_presets():
    for run, model, size in zip(resolved("pmf_table4", "paper"), ("b16", "b32", "b64"), (256, 512, 1024), strict=True):
        other = plain(compose([f"model=pmf_{model}", f"data=imagenet{size}"]))
        same_recipe(run, other, but=("backbone.bottleneck",))
        assert run["data"] == other["data"]


def test_arms_of_table_2():
    by_arm = {run["study"]["arm"]: run for run in resolved("pmf_table2", "paper")}
    small, large = by_arm["u-small"], by_arm["u-large"]
    assert (small["data"]["resolution"], small["backbone"]["patch"]) == (64, 4)
    assert (large["data"]["resolution"], large["backbone"]["patch"]) == (256, 16)
    assert small["data"]["name"] == "imagenet64"
    assert (small["objective"]["noise_scale"], large["objective"]["noise_scale"]) == (0.25, 1)  # pixels / 256
    for run in by_arm.values():
        assert run["objective"]["perceptual"] == {}
        assert run["backbone"]["bottleneck"] is None
        assert (run["study"]["arm"][0], run["images"]) == (run["objective"]["prediction"], 160 * 1_281_167)
    same_recipe(by_arm["x-large"], preset("pmf_b16"), but=("backbone.bottleneck", "objective.perceptual"))


def test_losses_of_figure_3b_are_those_of_perceptual():
    by_arm = {run["study"]["arm"]: run["objective"] for run in resolved("pmf_figure3b", "paper")}
    for arm, choice in {"mse": "none", "lpips": "lpips", "lpips-convnext": "paper"}.items():
        other = compose(["model=pmf_b16", f"perceptual={choice}"])
        assert by_arm[arm]["perceptual"] == other.objective.perceptual


def test_optimisers_of_figure_3a():
    rates = {cfg.study.arm: (cfg.optimizer.lr, cfg.images) for cfg in arms("pmf_figure3a", "paper")}
    for optimizer, rate in {"muon": 1e-3, "adam": 1e-4}.items():
        assert rates[f"{optimizer}-short"] == (rate, 160 * 1_281_167)
        assert rates[f"{optimizer}-long"] == (rate, 320 * 1_281_167)


@pytest.mark.slow
def test_steps_of_imf_end_at_imf():
    *earlier, last = arms("imf_steps", "paper")
    other = plain(compose(["model=imf_b2", "data=imagenet256_latents"]))
    of_batch = ("ema.halflife_kimg", "sampling.ema", "schedule.warmup_fraction")
    run = plain(last)
    assert (run.pop("batch"), other.pop("batch")) == (256, 1024)
    same_recipe({**run, "batch": 0}, {**other, "batch": 0}, but=of_batch)
    assert run["images"] == 240 * 1_281_167
    first, boundary, head, omega = (build_on_meta(cfg) for cfg in earlier)
    assert set(first.network.conditions) == set(boundary.network.conditions) == set(head.network.conditions)
    assert set(head.network.conditions) == {"label", "h"}
    assert set(omega.network.conditions) == {"label", "omega", "h"}
    assert [set(m.network.heads) for m in (first, boundary, head)] == [{"u"}, {"u"}, {"u", "v"}]
    assert [m.objective.jvp_tangent for m in (first, boundary, head, omega)] == ["target", *["network"] * 3]
    assert head.objective.omega_min == head.objective.omega_max == 2
    assert not omega.objective.sample_interval


def build_on_meta(cfg: DictConfig):
    with torch.device("meta"):
        return build(cfg)


@pytest.mark.parametrize(
    ("model", "data", "sweep"),
    [
        ("pmf_b16", "imagenet256", "backbone.patch=16,32"),
        ("pmf_b16", "imagenet256", "data.resolution=256,512,1024"),
        ("pmf_b16", "imagenet256", "objective.prediction=x,u"),
        ("imf_b2", "imagenet256_latents", "objective.v_source=head,boundary"),
        ("jit_b16", "imagenet256", "objective.prediction=x,eps,v"),
    ],
)
def test_plain_multiruns_of_imagenet_presets(model, data, sweep):
    (override,) = OverridesParser.create().parse_overrides([sweep])
    for (job,) in BasicSweeper.split_arguments([override], None)[0]:
        module = build_on_meta(compose([f"model={model}", f"data={data}", job, *backbone(model)]))
        key, _, value = job.partition("=")
        assert str(OmegaConf.select(OmegaConf.create(module.config), key)) == value


@pytest.mark.parametrize("name", PMF)
def test_folders_may_follow_the_resolution(name):
    """What the headers of the paper's scale tell to give: one folder of shards, one reference for each resolution."""
    given = ["data.root=/shards/imagenet${data.resolution}", "metrics.reference=/stats/imagenet${data.resolution}.npz"]
    cfg = compose([f"experiment={name}/paper", *given])
    assert cfg.data.root == f"/shards/imagenet{cfg.data.resolution}"
    assert cfg.metrics.reference == f"/stats/imagenet{cfg.data.resolution}.npz"
