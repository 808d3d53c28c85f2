"""OmegaConf resolvers for the files of conf/, such as ${product:...}."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from pmf_lightning.config import groups, row_tables
from pmf_lightning.data.images.class_folders import count_class_folders
from pmf_lightning.data.shards.manifest import shards_say
from pmf_lightning.data.sources.hf.columns import count_table_classes
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import register_resolver


def _in_proportion(value: float | int, size: float | int, reference: float | int) -> float:
    return value * size / reference


def _divided(value: int, by: int) -> int:
    """Divide and round down."""
    return value // by


def _named(value: Any, names: Mapping[str, str]) -> str:
    """Look up the name of a value in ``names``; a list is looked up by its entries joined by commas."""
    key = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    if key not in names:
        raise UserError(f"study.names has no name for {key}; it has {', '.join(map(str, names))}")
    return names[key]


def _by_sampler(rates: Mapping[str, float | int], sampler: str | None) -> float | int:
    """Return the rate of a sampler, the first one for a sampler that has none."""
    return rates[sampler] if sampler in list(rates) else next(iter(rates.values()))


def _study_folder(otherwise: str, *, _root_: DictConfig) -> str:
    """Return the directory of a study's run, ``otherwise`` for any other run (a launcher may set one)."""
    study = _root_.get("study")
    return f"runs/{study.name}/{study.scale}/{study.arm}-seed{_root_.seed}" if study else otherwise


def _half_life_kimg(beta: float | int, batch: int) -> float:
    """Return the half-life, in thousands of images, of an EMA with decay ``beta`` per step of ``batch`` images."""
    return batch * math.log(0.5) / math.log(beta) / 1000


def _steps_of(images: int, batch: int) -> int:
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    return max(1, images // batch)


_RESOLVERS = {
    "in_proportion": _in_proportion,
    "divided": _divided,
    "on_gpu": lambda accelerator, there, otherwise: there if accelerator in ("gpu", "cuda") else otherwise,
    "number_or_null": lambda value: None if value == "auto" else value,
    "product": lambda *factors: math.prod(factors),
    "named": _named,
    "by_sampler": _by_sampler,
    "study_folder": _study_folder,
    "halflife_kimg": _half_life_kimg,
    "steps_of": _steps_of,
    "class_folders": count_class_folders,
    "classes_with": lambda label: 1 if label is None else 2,  # of a set whose only label is one attribute
    "shards_say": shards_say,
    "table_classes": count_table_classes,
    "groups": groups.listing,
    "picked": row_tables.picked,
}


def register_resolvers() -> None:
    """Register the resolvers with OmegaConf."""
    for name, function in _RESOLVERS.items():
        register_resolver(name, function)
