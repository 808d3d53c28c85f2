"""Every combination of conf/ composes or is refused with a reason; every experiment takes a step."""

import re
from functools import cache
from inspect import signature
from itertools import product

import composed_once
import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from shrunk import BACKBONE, backbone
from table_files import write_parquet
from tiny_shards import numbered, write_shards

from pmf_lightning import UserError, build, compose
from pmf_lightning.commands.info import info
from pmf_lightning.config.compose import CONF, choices
from pmf_lightning.config.groups import groups
from pmf_lightning.config.presets import published
from pmf_lightning.config.row_tables import without_table
from pmf_lightning.train import train
from pmf_lightning.utils.hydra_compat import VERSION_BASE

VARIANTS = ("objective", "optimizer", "preconditioner", "perceptual")


@cache
def _side(data):
    return compose([f"data={data}", "metrics=none"]).data.resolution


def _native(model):
    """The resolution that a preset is made for."""
    return _side(published()[model].data)


def _build_on_meta(cfg):
    with torch.device("meta"):
        return build(cfg)


# Sizes of one kind differ in numbers of the backbone alone: one of each kind meets all data, the others their own.
KINDS = (
    "pmf_digits",
    "pmf_b16",
    "pmf_b64",
    "imf_b2",
    "jit_tiny",
    "jit_b32",
    "drifting_tiny",
    "drifting_b16",
    "mae_r256",
)
OTHERS = [(model, published()[model].data) for model in choices("model") if model not in KINDS]


@pytest.mark.slow
@pytest.mark.parametrize("names", [*product(KINDS, choices("data")), *OTHERS], ids="-".join)
def test_model_on_data_composes_or_is_refused(names, tmp_path):
    model, data = names
    overrides = [f"model={model}", f"data={data}", *backbone(model)]
    if data == "folder":
        for name in "ab":
            (tmp_path / name).mkdir()
    if data == "shards":
        write_shards(tmp_path, numbered(4, (3, 32, 32)), [0, 1, 2, 1], per_shard=2)
    if data == "hf":
        pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "pmf_lightning[hf]"')
        write_parquet(tmp_path)
    if data in ("folder", "shards", "hf"):
        overrides.append(f"data.root={tmp_path}")
    cfg = compose(overrides)
    if cfg.data.resolution % cfg.backbone.patch:
        with pytest.raises(UserError, match="is not divisible by"):
            _build_on_meta(cfg)
    else:
        module = _build_on_meta(cfg)
        grid = cfg.data.resolution // cfg.backbone.patch
        assert getattr(module.network, "grid", grid) == grid  # an autoencoder has none
        assert module.network.classes == cfg.data.classes


def _fits(cfg):
    """Whether a model's options are those of its objective."""
    kind = get_object(cfg.objective._target_)
    parameters = signature(kind).parameters.values()
    needed = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
    options = set(without_table(cfg, "objective")) - {"_target_"}
    return needed <= options <= {parameter.name for parameter in parameters} and set(kind.config_groups) <= set(cfg)


@pytest.mark.parametrize(
    "names",
    [(m, g, name) for m in ("pmf_b16", "pmf_digits", "imf_b16", "jit_b16") for g in VARIANTS for name in choices(g)],
    ids="-".join,
)
def test_variant_composes_or_is_refused(names):
    model, group, name = names
    overrides = [f"model={model}", f"data.resolution={_native(model)}", f"{group}={name}", *backbone(model)]
    if model == "jit_b16" and group not in ("objective", "optimizer"):
        with pytest.raises(UserError, match=f"Could not override '{group}'"):  # JiT has no such part
            compose(overrides)
        return
    cfg = compose(overrides)
    if not _fits(cfg):
        with pytest.raises(UserError, match=r"objective: \w+ (has no option|lacks) .* a model that is made for"):
            _build_on_meta(cfg)
    elif cfg.objective.get("prediction") == "u" and cfg.objective.preconditioner is not None:
        with pytest.raises(UserError, match="objective: prediction=u: a pre-conditioner makes images"):
            _build_on_meta(cfg)
    else:
        objective = _build_on_meta(cfg).objective
        assert all(hasattr(objective, key) for key in without_table(cfg, "objective") if key != "_target_")
        if "perceptual" in cfg.objective:
            assert objective.perceptual.keys() == cfg.features.keys()


@pytest.mark.parametrize("backbone", ["vit", "jit", "imf"])
@pytest.mark.parametrize(("prediction", "loss"), [*product(("x", "eps", "v"), repeat=2)])
def test_jit_on_any_backbone(backbone, prediction, loss):
    sizes = [*BACKBONE[:3], "backbone.depth=2", *["backbone.context_start=1"] * (backbone == "jit")]
    kinds = [f"objective.prediction={prediction}", f"objective.loss={loss}"]
    cfg = compose(["model=jit_b16", "data=imagenet256", f"backbone={backbone}", *kinds, *sizes])
    module = _build_on_meta(cfg)
    assert list(module.network.heads) == ["u"]
    assert set(module.network.conditions) == {"label", "t"}
    assert (module.objective.prediction, module.objective.loss) == (prediction, loss)


# Recipes come with their models, the classifier with metrics= and extractor=.
GROUPS = groups() - {"toys", "recipe", "classifier"}

# These need a root.
LEFT_OUT = {("data", "folder"), ("data", "shards"), ("data", "hf")}

# What a group needs beside it, and how its option is written where it is not the group's name.
BESIDE = {
    "autoencoder": ["battery=digits"],
    "backbone": ["backbone.patch=8"],
    "controller": ["model=pmf_digits", "posttrain=fd_loss", "init_from=weights"],
    "discrepancy": ["model=pmf_digits", "posttrain=fd_loss", "init_from=weights"],
    "drift_features": ["model=drifting_tiny"],
    "encoder": ["battery=digits"],
}
WRITTEN = {
    "autoencoder": "autoencoder@battery.members.mae.settings",
    "controller": "+controller",
    "encoder": "+encoder@battery.members.another",
}


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_choice_composes(group):
    for name in choices(group):
        if (group, name) in LEFT_OUT or (
            group == "experiment" and "/" in name
        ):  # studies: tests/sweeps/test_studies.py
            continue
        models = {"drifting": "drifting_b2", "jit": "jit_b16", "mae": "mae_tiny"} if group == "backbone" else {}
        own = [f"model={models[name]}"] if name in models else []
        command = "info" if group == "cluster" else "train"
        cfg = compose([f"{WRITTEN.get(group, group)}={name}", *BESIDE.get(group, []), *own], command)
        config = OmegaConf.to_container(cfg, resolve=True)
        assert config["batch"] > 0


@pytest.mark.parametrize("name", [name for name in choices("experiment") if "/" not in name])  # others: test_studies
def test_experiment_takes_a_step(name, tmp_path):
    header = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert any("python -m pmf_lightning.train" in line for line in header[:3]), "the header gives the command"
    overrides = [f"experiment={name}", *BACKBONE, "steps=1", "batch=16", "metrics=none", f"run_dir={tmp_path / 'run'}"]
    if name == "posttrain_digits":
        overrides += ["init_from=null", "posttrain.encoders=[pixels8]"]  # the rest trains networks first
    summary = train(compose(overrides))
    assert summary["steps"] == 1
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in choices("model")]
)
def test_noise_scale_follows_the_resolution(model):
    """It doubles with the side of the image, or does not depend on it: small models, latents, drifting."""
    cfg = compose([f"model={model}", "data=digits"])
    objective = cfg.objective
    if "noise_scale" not in objective:
        assert not _build_on_meta(cfg).objective.samplers  # no generator
        return
    doubled = "in_proportion" in str(objective._get_node("noise_scale"))
    cfg.data.resolution = _native(model)
    before = objective.noise_scale
    cfg.data.resolution *= 2
    assert objective.noise_scale == before * (2 if doubled else 1)


@pytest.mark.parametrize(
    ("model", "pixels"), [("pmf_b4", 64), ("pmf_b16", 256), ("pmf_b64", 1024), ("jit_b16", 256), ("jit_h32", 512)]
)
def test_the_noise_is_pixels_over_256(model, pixels):
    """The rule of pMF's table 8, where B/32 and the long runs double it, and of JiT."""
    assert compose([f"model={model}", f"data=imagenet{pixels}"]).objective.noise_scale == pixels / 256


@pytest.mark.parametrize(
    ("model", "row"),
    [  # facts of the official configs: noise, P_mean, beta, uniform share, omega, t_min, t_max, average
        ("pmf_b16", (1, 0.8, 1, 0.0, 8.5, 0.1, 0.7, "2000k")),
        ("pmf_b32", (2, 0.8, 1, 0.0, 6.5, 0.1, 0.7, "2000k")),
        ("pmf_l16", (1, 0.8, 2, 0.0, 7.0, 0.2, 0.7, "1000k")),
        ("pmf_l32", (4, 0.0, 1, 0.0, 7.5, 0.2, 0.6, "2000k")),
        ("pmf_h16", (2, 0.0, 1, 0.1, 7.0, 0.2, 0.6, "1000k")),
        ("pmf_h32", (4, 0.0, 1, 0.1, 5.5, 0.1, 0.6, "500k")),
    ],
)
def test_row_of_the_recipe(model, row):
    data = "imagenet512" if model.endswith("32") else "imagenet256"
    cfg = compose([f"model={model}", f"data={data}"])
    objective, sampling = cfg.objective, cfg.sampling
    got = (objective.noise_scale, objective.P_mean, objective.omega_beta, objective.uniform_fraction)
    assert (*got, sampling.omega, sampling.t_min, sampling.t_max, sampling.ema) == row
    assert (cfg.batch, cfg.optimizer.lr, objective.P_std, list(cfg.ema.halflife_kimg)) == (
        1024,
        1e-3,
        0.8,
        [500, 1000, 2000],
    )
    assert cfg.steps == 400_364


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [f"{kind}_{size}" for kind in ("pmf", "imf", "jit", "drifting") for size in ("s4", "s8")]
)
def test_presets_for_one_gpu(model):
    """8 to 40 million parameters, a batch that fits 24 GB; the numbers of docs/recipes.md are those of info."""
    facts = info([f"model={model}", "gpu_gb=24"])[0]
    assert 8e6 < facts.parameters <= facts.training_parameters < 40e6
    assert facts.patch_tokens == 64
    assert facts.memory.micro_batch <= facts.largest_micro_batch
    recipes = (CONF.parent / "docs" / "recipes.md").read_text()
    for row in re.findall(rf"\| `{model}`, `{facts.data}` \|(.*)", recipes):
        sizes, peak, at_once = row.split("|")[:3]
        assert f"{facts.parameters / 1e6:.1f} M" in sizes
        assert f"{facts.training_parameters / 1e6:.1f} M" in sizes
        assert peak.split(",")[0].strip() == f"{facts.memory.peak / 1e9:.1f}"
        assert int(at_once) == facts.largest_micro_batch


def test_unknown_names_are_refused_with_the_near_ones():
    with pytest.raises(UserError, match=r"model=pmf_b17: .*pmf_b16"):
        compose(["model=pmf_b17"])
    with pytest.raises(UserError, match=r"data=imagenet255: .*imagenet256"):
        compose(["data=imagenet255"])
    with pytest.raises(UserError, match="batchsize: there is no such option; did you mean batch"):
        compose(["batchsize=3"])
    with pytest.raises(UserError, match=r"modl: there is no such option; did you mean model\b"):
        compose(["modl=pmf_xs8"])
    with pytest.raises(UserError, match=r"^study: Interpolation key 'study.bind.context.huge' not found; it refers"):
        compose(["experiment=jit_table4", "study.vary.network=huge"])


def test_the_readme_of_conf_names_every_group():
    rows = (line.split("|")[1] for line in (CONF / "README.md").read_text().splitlines() if line.startswith("| `"))
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} | {"classifier"}  # in the row of metrics
    assert named == groups()


def test_a_composition_inside_another_leaves_it_alone():
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(CONF), **VERSION_BASE):
        outer = GlobalHydra.instance().hydra
        composed_once.by_hydra(["model=pmf_tiny"], "train")
        assert GlobalHydra.instance().hydra is outer


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", []),
        ("train", ["model=pmf_digits", "logger=[wandb,csv]", "seed=3", "logger.wandb.name=a", "~trainer.devices"]),
        ("train", ["launcher=slurm", "hydra.launcher.nodes=2", "+callbacks.a={_target_: b.C}", "features={}"]),
        (
            "train",
            ["model=jit_b16", "backbone.heads={u: 2}", "optimizer=adam", "++optimizer.eps=1e-6", "ema={ramp: 1}"],
        ),
        ("evaluate", ["protocol=jit", "+data=digits", "data.resolution=8", "protocol.n=4"]),
        ("train", ["seed=1", "nothing=2"]),
        ("train", ["+seed=1"]),
        ("train", ["model=nothing", "seed=1"]),
        ("train", ["seed=1,2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_the_tests_compose_as_hydra_does(command, overrides, monkeypatch):
    """What composed_once.py makes of overrides, when it has kept their groups or not, is what Hydra makes of them."""

    def as_hydra_does(*given):
        with monkeypatch.context() as patch:
            patch.setattr(composed_once.FileSource, "load_config", composed_once.read_file)
            return composed_once.by_hydra(*given)

    ways = (as_hydra_does, composed_once.by_hydra, composed_once.composed, composed_once.composed)
    found = []
    for way in ways:
        try:
            cfg = way(overrides, command)
            found.append((OmegaConf.to_yaml(cfg), OmegaConf.is_struct(cfg), OmegaConf.is_readonly(cfg)))
        except Exception as error:
            found.append((type(error), str(error)))
    assert all(one == found[0] for one in found)
