"""Compatibility layer: commands behave the same with all supported versions of Hydra and OmegaConf."""

import inspect
from collections.abc import Callable
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

try:  # OmegaConf's YAML loader, which moved to omegaconf._yaml in 2.4
    from omegaconf._yaml import get_yaml_loader as yaml_loader
except ImportError:
    from omegaconf._utils import get_yaml_loader as yaml_loader  # noqa: F401

# Hydra 1.4 drops version_base, and its calls name the targets that they trust. Ours trust all targets: the command
# line is the user's own, and stored configurations are checked earlier (pipeline/trusted.py).
_TRUST = getattr(hydra.utils, "UNSAFE_DISABLE_EXECUTION_CHECKS", None)
VERSION_BASE = {"version_base": "1.3"} if _TRUST is None else {}
MAIN = VERSION_BASE if _TRUST is None else {"execution_whitelist": _TRUST}


def instantiate(config: Any, **options: Any) -> Any:
    """Build the object that ``config`` describes; errors of its constructor are raised as InstantiationException."""
    trust = {} if _TRUST is None else {"_execution_whitelist_": _TRUST}
    try:
        return hydra.utils.instantiate(config, **trust, **options)
    except (InstantiationException, OmegaConfBaseException):
        raise
    except Exception as error:  # Hydra 1.3 wraps it itself
        raise InstantiationException(f"Error in call to target '{config.get('_target_')}': {error!r}") from error


def register_resolver(name: str, function: Callable[..., Any]) -> None:
    """Register ``function`` with OmegaConf as the resolver ``${name:...}``."""
    register = OmegaConf.register_new_resolver
    known = getattr(OmegaConf, "register_resolver", None)  # before 2.4 this was a different function
    if known is not None and "replace" in inspect.signature(known).parameters:
        register = known
    register(name, function, replace=True)
