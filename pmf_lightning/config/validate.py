"""Check before any work that options fit each other. Every error names the key, the value and the remedy."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config.row_tables import without_table
from pmf_lightning.objectives.sampling_options import check_guidance, chosen_sampler
from pmf_lightning.utils.errors import UserError, suggestions

PRECISIONS, PRODUCTS = ("32-true", "bf16-mixed"), ("highest", "high", "medium")


def model(cfg: DictConfig) -> None:
    """Check the network against the data, the schedule, and the sampling options of evaluation; raises UserError."""
    size, patch = cfg.data.resolution, cfg.backbone.patch
    if size % patch:
        fitting = max(1, round(size / patch)) * patch
        raise UserError(f"data.resolution={size} is not divisible by backbone.patch={patch}; set it to {fitting}")
    decoder, channels = cfg.get("decoder"), cfg.data.channels
    if decoder is not None and len(decoder.mean) != channels:
        raise UserError(f"decoder.mean has {len(decoder.mean)} numbers, data.channels={channels}: give one for each")
    for name in ("warmup_fraction", "decay_fraction"):
        if not 0 <= cfg.schedule[name] <= 1:
            raise UserError(f"schedule.{name}={cfg.schedule[name]}: it is a share of the run, from 0 to 1")
    start, rate = cfg.schedule.get("start", 0.0), cfg.optimizer.lr  # missing in older checkpoints
    if rate >= 0 and not 0 <= start <= rate:  # the optimizer rejects negative rates
        raise UserError(f"schedule.start={start}: the rate rises from it; set it from 0 to optimizer.lr={rate}")
    averages = ema_names(cfg.ema.halflife_kimg)
    if twice := [name for name in averages if averages.count(name) > 1]:
        raise UserError(f"ema.halflife_kimg={list(cfg.ema.halflife_kimg)}: two averages have the name {twice[0]}")
    chosen, known = cfg.sampling.ema, [*averages, "raw"]
    if chosen not in known:
        raise UserError(f"sampling.ema={chosen}: there is no such average; {suggestions(str(chosen), known)}")
    requested = {name: cfg.sampling[name] for name in ("omega", "t_min", "t_max", "steps")}
    guidance(**requested, prefix="sampling.")
    if cfg.get("posttrain") is not None and cfg.posttrain.batch != cfg.batch:
        raise UserError(f"posttrain.batch={cfg.posttrain.batch}: it follows batch={cfg.batch}; set batch= alone")


def objective(cfg: DictConfig) -> None:
    """Check that the model sets exactly the fields of its objective; raises UserError."""
    kind = get_object(cfg.objective["_target_"])
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise UserError(f"objective._target_={cfg.objective['_target_']}: it is not an objective; leave it out")
    known, given = {field.name for field in fields(kind)}, set(without_table(cfg, "objective")) - {"_target_"}
    streams = set(getattr(kind, "config_groups", ()))  # the class may lack it: check_contract reports that
    problems = {"has no option": sorted(given - known), "lacks": sorted((known - given) | (streams - set(cfg)))}
    listed = "; ".join(f"{what} {', '.join(names)}" for what, names in problems.items() if names)
    if listed:
        raise UserError(
            f"objective: {kind.__name__} {listed}, as model={cfg.name} sets it; choose a model that is made for this "
            "objective (and backbone= for its network), or leave objective= out"
        )


def sampler(chosen: str | None, known: Sequence[str], steps: int, prefix: str = "") -> None:
    """Check the sampling method and steps against the model's methods (none: no generator); raises UserError."""
    if known:
        with _user_errors():
            chosen_sampler(known, chosen, steps, prefix)


def ema_names(halflife_kimg: Sequence[float | int]) -> list[str]:
    """Return the names of averages: 500k for a half-life of 500 kimg (500,000 images), rounded from 1000k on."""
    return [f"{round(half_life)}k" if half_life >= 1000 else f"{half_life:g}k" for half_life in halflife_kimg]


def guidance(*, omega: Any, t_min: Any, t_max: Any, steps: Any, prefix: str = "") -> None:
    """Check the types of sampling options from the command line, and guidance's range; raises UserError.

    ``sampler`` checks the range of ``steps``.
    """
    for name, value in (("omega", omega), ("t_min", t_min), ("t_max", t_max)):
        if not _is_number(value):
            raise UserError(f"{prefix}{name}={value}: give one number")
    if type(steps) is not int:
        raise UserError(f"{prefix}steps={steps}: give one integer")
    with _user_errors():
        check_guidance(omega, t_min, t_max, prefix)


@contextmanager
def _user_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def listed(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Check that each of these options has at least one value, and each value once; raises UserError."""
    for key in keys:
        if not len(cfg[key]) or len(set(cfg[key])) < len(cfg[key]):
            raise UserError(f"{key}={list(cfg[key])}: give at least one value, each value once")


def at_least(cfg: DictConfig, minima: Mapping[str, int]) -> None:
    """Check that the options, which may be dotted, have at least these values; raises UserError."""
    for key, least in minima.items():
        if (value := OmegaConf.select(cfg, key)) < least:
            raise UserError(f"{key}={value}: must be at least {least}")


def at_most(cfg: DictConfig, key: str, limit: str) -> None:
    """Check that an option is at most as large as the option ``limit``; raises UserError."""
    value, most = OmegaConf.select(cfg, key), OmegaConf.select(cfg, limit)
    if value > most:
        raise UserError(f"{key}={value}: must be at most {most} ({limit})")


def device(accelerator: str, devices: int | str | Sequence[int], requested: str | None = None) -> None:
    """Check that the requested devices exist; raises UserError, whose message starts with ``requested``."""
    requested = requested or f"trainer.accelerator={accelerator}"
    if accelerator == "cpu" and not (devices == "auto" or (isinstance(devices, int) and devices > 0)):
        raise UserError(
            f"trainer.devices={devices}: with trainer.accelerator=cpu it is a number of processes, such as 1; lists "
            "and -1 are of GPUs"
        )
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{requested}: torch finds no Apple GPU here; use the CPU (trainer=cpu, or device=cpu)")
    if accelerator not in ("gpu", "cuda"):
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(f"{requested}: torch finds no CUDA device here; use the CPU (trainer=cpu, or device=cpu)")
    if isinstance(devices, int) and devices > count:
        raise UserError(f"trainer.devices={devices}: this machine has {count}; set trainer.devices={count}")
    listed = [] if isinstance(devices, int | str) else list(devices)
    if wrong := [index for index in listed if index >= count or listed.count(index) > 1]:
        raise UserError(
            f"trainer.devices={listed}: {wrong[0]} does not exist, or is listed twice; GPUs are 0 to {count - 1}"
        )


def settle_accelerator(cfg: DictConfig) -> DictConfig:
    """Return ``cfg``, with trainer.accelerator=auto a copy that names the accelerator of this machine.

    Precision, micro-batch and loading follow the name.
    """
    if cfg.trainer.accelerator != "auto":
        return cfg
    cfg = copy.deepcopy(cfg)
    on_mac = torch.backends.mps.is_available()
    cfg.trainer.accelerator = "gpu" if torch.cuda.is_available() else "mps" if on_mac else "cpu"
    return cfg


def torch_device(name: str) -> None:
    """Check that the torch device ``name`` exists; raises UserError."""
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: torch has no such device; use cpu, cuda or cuda:1") from error
    device(chosen.type, 1, f"device={name}")
    if chosen.type == "cuda" and chosen.index is not None and chosen.index >= (count := torch.cuda.device_count()):
        raise UserError(f"device={name}: this machine has {count}, numbered from 0; use cuda:{count - 1}")


def world_size(trainer: DictConfig) -> int:
    """Return the number of devices that train together."""
    devices = trainer.devices
    if devices in ("auto", -1):  # Lightning's values for all devices
        devices = 1 if trainer.accelerator == "cpu" else max(1, torch.cuda.device_count())
    elif not isinstance(devices, int):
        devices = len(devices)
    return devices * trainer.num_nodes


def training(cfg: DictConfig) -> None:
    """Check devices and precision of a run; raises UserError."""
    device(cfg.trainer.accelerator, cfg.trainer.devices)
    precision(cfg)
    on_gpu = cfg.trainer.accelerator in ("gpu", "cuda")
    if on_gpu and cfg.trainer.precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(False):
        raise UserError(
            "trainer.precision=bf16-mixed: this GPU has no arithmetic in bfloat16 (Ampere and newer have); set "
            "trainer.precision=32-true"
        )


def precision(cfg: DictConfig) -> None:
    """Check the precision of the passes and of the matrix products; raises UserError."""
    if cfg.trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={cfg.trainer.precision}: use {' or '.join(PRECISIONS)}; weights stay float32, and the "
            "range of float16 is too short for the derivative"
        )
    if cfg.matmul_precision not in PRODUCTS:
        raise UserError(f"matmul_precision={cfg.matmul_precision}: {suggestions(str(cfg.matmul_precision), PRODUCTS)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
