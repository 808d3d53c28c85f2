"""Compose a checked configuration from Hydra overrides, the files of conf/ and folders of the user."""

from collections.abc import Sequence
from pathlib import Path
from string import Template

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pmf_lightning.config import option_checks, search_path
from pmf_lightning.config.command_line import readable, refuse_empty
from pmf_lightning.config.groups import check_choices, choices, command_file, without_null
from pmf_lightning.config.resolvers import register_resolvers
from pmf_lightning.config.search_path import CONF
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.hydra_compat import VERSION_BASE

__all__ = ["CONF", "choices", "compose", "one_line", "prepared", "scaled"]
SCALES = ("small", "paper")

register_resolvers()
search_path.register()


def at_scale(overrides: Sequence[str], experiments: Path) -> list[str]:
    """Merge ``scale=`` into ``experiment=``; overrides without an experiment are unchanged.

    ``experiments`` is the folder of the experiments: a file of it is one, and so is a folder with a file for each
    scale. The default scale is small. Raises UserError for an unknown scale, a scale without an experiment, or a scale
    that the experiment does not have.
    """
    given = dict(override.split("=", 1) for override in overrides if override.startswith(("scale=", "experiment=")))
    scale, name = given.get("scale"), given.get("experiment")
    if scale not in (None, *SCALES):
        raise UserError(
            f"scale={scale}: experiments have the scales {' and '.join(SCALES)}; {suggestions(scale, SCALES)}"
        )
    if name is None:
        if scale is not None:
            raise UserError(f"scale={scale}: it belongs to an experiment; add experiment=")
        return list(overrides)
    if "," in name:
        raise UserError(f"experiment={name}: an experiment is a sweep; run one at a time")
    chosen = _file_of(name, scale, experiments)
    rest = (f"experiment={chosen}" if o == f"experiment={name}" else o for o in overrides)
    return [override for override in rest if override != f"scale={scale}"]


def _file_of(name: str, scale: str | None, experiments: Path) -> str:
    """Return the file of an experiment at a scale, relative to ``experiments`` and without .yaml; raises UserError."""
    scales = {path.name: [s for s in SCALES if (path / f"{s}.yaml").is_file()] for path in experiments.glob("*/")}
    single = [path.stem for path in experiments.glob("*.yaml")]
    if name in single:
        if scale is not None:
            raise UserError(f"scale={scale}: experiment={name} has one scale only; leave scale= out")
        return name
    first, _, second = name.partition("/")
    if first in scales.get(second, ()):  # older records write the scale first
        first, second, name = second, first, f"{second}/{first}"
    if second and second in scales.get(first, ()):
        if scale not in (None, second):
            raise UserError(f"scale={scale}: experiment={name} is the scale {second}; leave one of them out")
        return name
    if second or not scales.get(name):
        raise UserError(f"experiment={name}: there is no such experiment; {suggestions(first, {*single, *scales})}")
    if (wanted := scale or SCALES[0]) not in scales[name]:
        options = f"experiment={name}" + (f" scale={scale}" if scale else "")
        raise UserError(f"{options}: it has the scale {scales[name][0]} only; set scale={scales[name][0]}")
    return f"{name}/{wanted}"


def compose(overrides: Sequence[str] = (), config_name: str = "train", with_hydra: bool = False) -> DictConfig:
    """Compose and check the configuration of a command from Hydra overrides, as the command line does.

    Folders of the user are named by hydra.searchpath=[...] or PMF_CONF (config/search_path.py). The result has Hydra's
    own section, which describes the job, only ``with_hydra``. Raises UserError for an unknown group choice, an unknown
    option, a value of the wrong kind, or an unreadable override.
    """
    left, entries = search_path.taken_from(overrides)
    with search_path.added(entries):
        overrides = prepared(left, config_name)
        cfg = _composed(overrides, config_name, with_hydra)
        option_checks.check(cfg, overrides, config_name, lambda fewer: _composed(fewer, config_name))
    return cfg


def prepared(overrides: Sequence[str], config_name: str, several: bool = False) -> list[str]:
    """Convert overrides for Hydra: merge scales, replace null groups, quote paths; raises UserError.

    With ``several``, commas and functions such as range() mean several runs.
    """
    refuse_empty(overrides)
    overrides = scaled(without_null(overrides, config_name))
    check_choices(overrides)
    return readable(overrides, config_name, several)


def _composed(overrides: Sequence[str], config_name: str, with_hydra: bool = False) -> DictConfig:
    """Compose with Hydra, ``with_hydra`` with its own section; raises UserError for an override that Hydra rejects."""
    try:
        return _by_hydra(overrides, config_name, with_hydra)
    except ConfigCompositionException as error:
        option_checks.refuse_unknown(overrides, config_name, lambda fewer: _by_hydra(fewer, config_name))
        raise UserError(one_line(error).partition(" To append to your config")[0]) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(one_line(error)) from error


def help_text(overrides: Sequence[str], config_name: str) -> str:
    """Return the help of a command: the template of its file, in which $CONFIG is what prepared ``overrides`` compose.

    Hydra's own --help loads every file of every group first, which takes two processor seconds more. Raises UserError.
    """
    composed = _composed(overrides, config_name, with_hydra=True)
    options = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    return Template(composed.hydra.help.template).substitute(CONFIG=OmegaConf.to_yaml(options))


def _by_hydra(overrides: Sequence[str], config_name: str, with_hydra: bool = False) -> DictConfig:
    outer = GlobalHydra.instance().hydra  # a running Hydra job; Hydra allows only one at a time
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), job_name=config_name, **VERSION_BASE):
            return hydra_compose(command_file(config_name), list(overrides), return_hydra_config=with_hydra)
    finally:
        GlobalHydra.instance().hydra = outer


def scaled(overrides: Sequence[str]) -> list[str]:
    """Merge ``scale=`` into ``experiment=``, of conf/ or of the user's folders; raises UserError, see ``at_scale``."""
    named = [override.partition("=")[2] for override in overrides if override.startswith("experiment=")]
    places = [folder / "experiment" for folder in search_path.folders()]
    holding = [at for at in places if named and ((at / f"{named[-1]}.yaml").is_file() or (at / named[-1]).is_dir())]
    return at_scale(overrides, (holding or places)[0])


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` on one line, or of the first UserError among its causes.

    For a value that is missing it names the option.
    """
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=???: it has no value; set it"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    inner = error.__cause__ or error.__context__
    return f"{text} ({' '.join(str(inner).split())})" if inner is not None and str(inner) not in text else text
