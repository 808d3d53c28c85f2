"""What differs between the supported versions of Hydra and OmegaConf, so that commands behave the same with each."""

import inspect
from collections.abc import Callable
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

try:  # its own reader of YAML, from 2.4 and before
    from omegaconf._yaml import get_yaml_loader as yaml_loader
except ImportError:
    from omegaconf._utils import get_yaml_loader as yaml_loader  # noqa: F401

# From 1.4: no version_base any more, and calls say which targets they trust. Ours trust all: a command line is the
# user's own, and a configuration that was stored somewhere is checked before it comes here (pipeline/trusted.py).
_TRUST = getattr(hydra.utils, "UNSAFE_DISABLE_EXECUTION_CHECKS", None)
VERSION_BASE = {"version_base": "1.3"} if _TRUST is None else {}
MAIN = VERSION_BASE if _TRUST is None else {"execution_whitelist": _TRUST}


def instantiate(config: Any, **options: Any) -> Any:
    """Build what ``config`` describes; whatever a constructor raises becomes an InstantiationException around it."""
    trust = {} if _TRUST is None else {"_execution_whitelist_": _TRUST}
    try:
        return hydra.utils.instantiate(config, **trust, **options)
    except (InstantiationException, OmegaConfBaseException):
        raise
    except Exception as error:  # Hydra 1.3 wraps it itself
        raise InstantiationException(f"Error in call to target '{config.get('_target_')}': {error!r}") from error


def register_resolver(name: str, function: Callable[..., Any]) -> None:
    """Make ``function`` known to OmegaConf as the resolver ``${name:...}``."""
    register = OmegaConf.register_new_resolver
    known = getattr(OmegaConf, "register_resolver", None)  # before 2.4 this was another, older function
    if known is not None and "replace" in inspect.signature(known).parameters:
        register = known
    register(name, function, replace=True)
