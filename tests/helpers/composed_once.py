"""In the tests, a choice of groups is composed once in each process; every composition with other values copies it.

Hydra composes in two steps: the groups make a configuration, then the values are set in it. The first step takes nine
tenths of the time and depends on the groups alone, so its results are kept. The second step is Hydra's own here too.
tests/config/test_configs.py compares both ways. Commands that tests start as a user does compose without this.
"""

import copy
import pickle
from functools import cache
from importlib import import_module

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pmf_lightning.config import search_path

COMPOSING = import_module("pmf_lightning.config.compose")  # a function of the package has the same name
by_hydra = COMPOSING._by_hydra
FileSource = SourcesRegistry.instance().resolve("file")  # Hydra has imported it as a plugin, aside from sys.modules
read_file = FileSource.load_config


@cache
def _chosen(groups: tuple[str, ...], command: str) -> bytes:
    return pickle.dumps(by_hydra(groups, command))


def _chooses(override) -> bool:
    """Whether Hydra reads an override in its first step; a mapping for a group is a value."""
    name = override.key_or_group
    is_group = (search_path.CONF / name).is_dir() and not isinstance(override.value(), dict)
    return is_group or override.package is not None or name.split(".")[0].split("/")[0] == "hydra"


def composed(overrides, command, with_hydra=False):
    """Return what ``by_hydra`` returns."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if with_hydra or search_path.entries() or any(one.is_sweep_override() for one in parsed):
        return by_hydra(overrides, command, with_hydra)  # folders of a test change; a sweep is refused
    cfg = pickle.loads(_chosen(tuple(one.input_line for one in parsed if _chooses(one)), command))
    ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if not _chooses(one)], cfg)
    return cfg


@cache
def _whole(base):
    return COMPOSING.compose(list(base))


def settings_of(base, *overrides):
    """The configuration of ``base`` with values set in it, without Hydra: ``base`` is composed once."""
    cfg = copy.deepcopy(_whole(tuple(base)))
    for option, _, value in (text.partition("=") for text in overrides):
        OmegaConf.update(cfg, option, yaml.safe_load(value))
    return cfg


@cache
def _kept(config_path: str) -> bytes:
    return pickle.dumps(read_file(FileSource("main", str(search_path.CONF)), config_path))


def _read_once(source, config_path):
    """Read a file for Hydra; one of conf/ is parsed once in each process, which is a third of a composition."""
    if (source.provider, source.path) != ("main", str(search_path.CONF)):
        return read_file(source, config_path)
    return pickle.loads(_kept(config_path))


def install():
    """Replace the product's function, and Hydra's reading of files, in this process."""
    COMPOSING._by_hydra = composed
    FileSource.load_config = _read_once
