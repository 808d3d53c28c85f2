"""From overrides to a checked configuration. The YAML files under conf/ are the only home of the numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning import option_checks
from pmf_lightning.data.class_folders import count_class_folders
from pmf_lightning.data.shards import shards_say
from pmf_lightning.errors import UserError
from pmf_lightning.groups import CONF, check_choices, choices, without_null
from pmf_lightning.hydra_compat import VERSION_BASE, register_resolver
from pmf_lightning.overrides import readable, refuse_empty
from pmf_lightning.precision import Number
from pmf_lightning.scales import at_scale

__all__ = ["CONF", "choices", "compose", "one_line", "prepared", "scaled"]


def _in_proportion(value: Number, size: Number, reference: Number) -> float:
    return value * size / reference


def _divided(value: int, by: int) -> int:
    """Return the quotient, rounded down."""
    return value // by


def _product(*factors: Number) -> Number:
    return math.prod(factors)


def _named(value: Any, names: Mapping[str, str]) -> str:
    """Return the name that ``names`` has for a value; of a list, for its entries joined by commas."""
    key = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    if key not in names:
        raise UserError(f"study.names has no name for {key}; it knows {', '.join(map(str, names))}")
    return names[key]


def _study_folder(otherwise: str, *, _root_: DictConfig) -> str:
    """Return where a run of a study lies, ``otherwise`` for any other run: launchers name directories too."""
    study = _root_.get("study")
    return f"runs/{study.name}/{study.scale}/{study.arm}-seed{_root_.seed}" if study else otherwise


def _half_life_kimg(beta: Number, batch: int) -> float:
    """Return the half-life, in thousands of images, of an average that keeps ``beta`` per step of ``batch`` images."""
    return batch * math.log(0.5) / math.log(beta) / 1000


def _steps_of(images: int, batch: int) -> int:
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    return max(1, images // batch)


register_resolver("in_proportion", _in_proportion)
register_resolver("divided", _divided)
register_resolver("product", _product)
register_resolver("named", _named)
register_resolver("study_folder", _study_folder)
register_resolver("half_life_kimg", _half_life_kimg)
register_resolver("steps_of", _steps_of)
register_resolver("class_folders", count_class_folders)
register_resolver("shards_say", shards_say)


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Compose the configuration of a command from Hydra overrides, as the command line does, and check its options.

    Raises UserError for an unknown group choice, an unknown option, a value of the wrong kind, or an override that
    cannot be read.
    """
    overrides = prepared(overrides, config_name)
    cfg = _composed(overrides, config_name)
    option_checks.check(cfg, overrides, config_name, lambda fewer: _composed(fewer, config_name))
    return cfg


def prepared(overrides: Sequence[str], config_name: str, several: bool = False) -> list[str]:
    """Return overrides as Hydra takes them: scales, groups without a choice, and paths to the letter; UserError.

    ``several`` says that commas and functions such as range() stand for several runs.
    """
    refuse_empty(overrides)
    overrides = scaled(without_null(overrides, config_name))
    check_choices(overrides)
    return readable(overrides, config_name, several)


def _composed(overrides: Sequence[str], config_name: str) -> DictConfig:
    """Return what Hydra composes; raises UserError for what it refuses."""
    try:
        return _by_hydra(overrides, config_name)
    except ConfigCompositionException as error:
        option_checks.refuse_unknown(overrides, config_name, lambda fewer: _by_hydra(fewer, config_name))
        raise UserError(one_line(error).partition(" To append to your config")[0]) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(one_line(error)) from error


def _by_hydra(overrides: Sequence[str], config_name: str) -> DictConfig:
    outer = GlobalHydra.instance().hydra  # a running Hydra job, which allows no second one at the same time
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            return hydra_compose(config_name, list(overrides))
    finally:
        GlobalHydra.instance().hydra = outer


def scaled(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with ``scale=`` taken into ``experiment=``; raises UserError, see scales.py."""
    return at_scale(overrides, CONF / "experiment")


def one_line(error: BaseException) -> str:
    """Return the message of ``error``, or of the UserError at its root, on one line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    inner = error.__cause__ or error.__context__
    return f"{text} ({' '.join(str(inner).split())})" if inner is not None and str(inner) not in text else text
