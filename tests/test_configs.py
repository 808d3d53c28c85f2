"""Every combination of conf/ composes or is refused with a reason; every experiment takes a step."""

from itertools import product

import pytest
import torch
from omegaconf import OmegaConf
from shrunk import BACKBONE

from pmf_lightning import UserError, build, compose
from pmf_lightning.config import CONF, choices
from pmf_lightning.published import published
from pmf_lightning.train import train

VARIANTS = ("objective", "optimizer", "times", "preconditioner", "perceptual")
NATIVE = {
    **{"pmf_b4": 64, "pmf_b64": 1024, "pmf_tiny": 32, "pmf_digits": 32},
    **{f"pmf_{size}{patch}": 16 * patch for size in "blh" for patch in (16, 32)},
    **{f"imf_{size}{patch}": 16 * patch for size in ("b", "m", "l", "xl") for patch in (2, 16)},
}


def _build_on_meta(cfg):
    with torch.device("meta"):
        return build(cfg)


# Sizes of one kind differ in numbers of the backbone alone: one of each kind meets all data, the others their own.
KINDS = ("pmf_digits", "pmf_tiny", "pmf_b4", "pmf_b16", "pmf_b32", "pmf_b64", "imf_b2", "imf_b16")
OTHERS = [(model, published()[model].data) for model in choices("model") if model not in KINDS]


@pytest.mark.parametrize("names", [*product(KINDS, choices("data")), *OTHERS], ids="-".join)
def test_model_on_data_composes_or_is_refused(names, tmp_path):
    model, data = names
    overrides = [f"model={model}", f"data={data}", *BACKBONE]
    if data == "folder":
        for name in "ab":
            (tmp_path / name).mkdir()
        overrides.append(f"data.root={tmp_path}")
    cfg = compose(overrides)
    if cfg.data.resolution % cfg.backbone.patch:
        with pytest.raises(UserError, match="is not divisible by"):
            _build_on_meta(cfg)
    else:
        module = _build_on_meta(cfg)
        assert module.network.grid == cfg.data.resolution // cfg.backbone.patch
        assert module.network.classes == cfg.data.classes


@pytest.mark.parametrize(
    "names",
    [(m, g, name) for m in ("pmf_b16", "pmf_digits", "imf_b16") for g in VARIANTS for name in choices(g)],
    ids="-".join,
)
def test_variant_composes_or_is_refused(names):
    model, group, name = names
    cfg = compose([f"model={model}", f"data.resolution={NATIVE[model]}", f"{group}={name}", *BACKBONE])
    if cfg.objective.prediction == "u" and cfg.objective.preconditioner is not None:
        with pytest.raises(UserError, match="objective: prediction=u: a pre-conditioner makes images"):
            _build_on_meta(cfg)
    else:
        objective = _build_on_meta(cfg).objective
        assert (objective.perceptual.keys(), objective.prediction) == (cfg.features.keys(), cfg.objective.prediction)


@pytest.mark.parametrize("group", sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "toys"))
def test_every_choice_composes(group):
    extra = {"backbone": ["backbone.patch=8"], "experiment": []}.get(group, [])
    for name in choices(group):
        if (group, name) in {("data", "folder"), ("backbone", "vit")}:
            continue  # one needs a root, the other is what all sizes share
        config = OmegaConf.to_container(compose([f"{group}={name}", *extra]), resolve=True)
        assert config["batch"] > 0


@pytest.mark.parametrize("name", choices("experiment"))
def test_experiment_takes_a_step(name, tmp_path):
    header = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert any("python -m pmf_lightning.train" in line for line in header[:3]), "the header gives the command"
    overrides = [f"experiment={name}", *BACKBONE, "steps=1", "batch=8", "metrics=none", f"run_dir={tmp_path / 'run'}"]
    summary = train(compose(overrides))
    assert summary["steps"] == 1
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("model", choices("model"))
def test_noise_scale_follows_the_resolution(model):
    native = NATIVE[model]
    data = ["data=digits", "data.channels=3"]
    at = {size: compose([f"model={model}", *data, f"data.resolution={size}"]) for size in (native, 2 * native)}
    if model in ("pmf_tiny", "pmf_digits") or model.startswith("imf"):
        assert at[native].objective.noise_scale == at[2 * native].objective.noise_scale
    else:
        assert at[2 * native].objective.noise_scale == 2 * at[native].objective.noise_scale


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
    assert (cfg.batch, cfg.optimizer.lr, objective.P_std, list(cfg.ema.half_lives_kimg)) == (
        1024,
        1e-3,
        0.8,
        [500, 1000, 2000],
    )
    assert cfg.steps == 400_364


def test_unknown_names_are_refused_with_the_near_ones():
    with pytest.raises(UserError, match=r"model=pmf_b17: .*pmf_b16"):
        compose(["model=pmf_b17"])
    with pytest.raises(UserError, match=r"data=imagenet255: .*imagenet256"):
        compose(["data=imagenet255"])
    with pytest.raises(UserError, match="Key 'batchsize' is not in struct"):
        compose(["batchsize=3"])


def test_a_composition_inside_another_leaves_it_alone():
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(CONF), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose(["model=pmf_tiny"])
        assert GlobalHydra.instance().hydra is outer
