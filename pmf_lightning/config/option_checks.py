"""Check a composed configuration against the table of options: first the names, then the kinds of the values."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, get_type_hints

from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, UnsupportedInterpolationType

from pmf_lightning.config import row_tables
from pmf_lightning.config.command_line import Typed, parse, split
from pmf_lightning.config.groups import groups, is_group
from pmf_lightning.config.option_kinds import ANYTHING, HYDRAS, Kind, kind_of_annotation, shown, unknown
from pmf_lightning.config.option_table import COMMANDS, kind_of
from pmf_lightning.config.renamed import new_name
from pmf_lightning.utils.errors import UserError

# Option of Lightning's Trainer -> the options of ours that determine it.
OURS = {
    "max_steps": "steps= or images=",
    "max_epochs": "images= (or steps=): a run is as long as the images it sees",
    "min_steps": "steps= or images=",
    "min_epochs": "images= (or steps=)",
    "fast_dev_run": "steps=1",
    "accumulate_grad_batches": "micro_batch=: batch= is divided over the devices",
    "log_every_n_steps": "log_every_steps=",
    "logger": "logger=",
    "default_root_dir": "run_dir=",
    "enable_checkpointing": "checkpoint.every_images=",
    "callbacks": "callbacks=, sample_grid=, checkpoint= and metrics=",
    "limit_train_batches": "steps= or images=",
    "limit_val_batches": "metrics=",
    "limit_test_batches": "metrics=",
    "limit_predict_batches": "metrics=",
    "val_check_interval": "metrics.every_images=",
    "check_val_every_n_epoch": "metrics.every_images=",
    "num_sanity_val_steps": "metrics=",
    "use_distributed_sampler": "seed=: each device gets its share of every batch",
    "reload_dataloaders_every_n_epochs": "images=",
    "overfit_batches": "data=",
    "barebones": "sample_grid.enabled=false metrics=none",
    "plugins": "trainer.strategy= and trainer.precision=",
    "enable_progress_bar": "log_every_steps=",
    "enable_model_summary": "python -m pmf_lightning.info",
    "enable_autolog_hparams": "logger=",
    "model_registry": "logger=",
    "inference_mode": "metrics=",
    "sync_batchnorm": "model=: no network of ours has batch norms",
}
_NEEDED = {f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
# Below these, keys may be added or left out: the names are the user's or a library's.
_FREE = (
    "study.",
    "features.",
    "battery.members.",
    "objective.perceptual.",
    "backbone.heads.",
    "backbone.sizes.",
    "objective.time_samplings.",
    "extractor.module.",
    "decoder.architecture.",
)
# Below these, entries are named by the user and described by their ``_target_``.
_ADDED = ("callbacks.", "logger.")
_READS_DATA = ("class_folders:", "shards_say:")  # resolvers that open files


def check(cfg: DictConfig, overrides: Sequence[str], command: str, compose: Callable[[list[str]], DictConfig]) -> None:
    """Check the configuration that a command's ``overrides`` produced; raises UserError.

    ``compose`` composes other overrides; it is called without the additions ("+") and deletions ("~").
    """
    typed = [split(override) for override in overrides]
    for one in typed:
        if f"{one.option}.".startswith("paper."):
            raise UserError(
                f"{one.text}: results of the paper are not options; a preset's file in conf/model states them"
            )
    plain = [one for one in typed if one.sign == "" or is_group(one.option) or one.option.startswith("hydra.")]
    if len(plain) < len(typed):
        base = compose([one.text for one in plain])
        for one in typed:
            if one not in plain:
                _check_left_out(one, base) if one.sign == "~" else _check_added(one, cfg, base, command)
    _check_options(cfg, command, {one.option for one in typed}, {one.option for one in typed if one.sign == ""})
    row_tables.check(cfg)


def refuse_unknown(overrides: Sequence[str], command: str, compose: Callable[[list[str]], DictConfig]) -> None:
    """Raise UserError for each override rejected by Hydra that names no option or has an unsuitable value."""
    typed = [split(override) for override in overrides]
    try:
        base = compose([one.text for one in typed if is_group(one.option)])
    except ConfigCompositionException:
        return  # the groups are incompatible
    for one in typed:
        known = is_group(one.option) or one.option.startswith("hydra.") or _has(base, one.option)
        if one.sign == "" and not known:
            if (kind := _added_kind(one.option, base, command)) is not None:
                kind.check(one.option, parse(one.text).value())
                raise UserError(f"{one.text}: it is not set yet; put a + in front to add it, +{one.text}")
            raise _no_such(one.option, base)
        elif known and not one.option.startswith("hydra.") and not is_group(one.option):
            _check_merged(one, base, command)
            if one.sign == "+":
                raise UserError(f"{one.text}: the option exists already; leave the + out, {one.text[1:]}")


def _check_merged(one: Typed, base: DictConfig, command: str) -> None:
    """Raise UserError if the value of an override has the wrong kind or cannot replace a mapping of ``base``."""
    value = parse(one.text).value()
    if "${" in str(value):
        return
    if (kind := kind_of(command, one.option)) is not None:
        kind.check(one.option, value)
    there = _Leaf(one.option, _parent(base, one.option), one.option.rpartition(".")[2])
    if there.is_mapping and isinstance(value, Mapping):
        for key in value:
            if key not in there.node:
                raise _no_such(f"{one.option}.{key}", base)
    elif there.is_mapping:
        below = ", ".join(f"{one.option}.{key}" for key in there.node if not str(key).startswith("_"))
        raise UserError(f"{one.text}: set the options below it: {below}")


def check_values(overrides: Sequence[str], command: str) -> None:
    """Check the values of overrides without composing a configuration; raises UserError."""
    for override in overrides:
        option = split(override).option
        kind = None if is_group(option) else kind_of(command, option)
        value = parse(override).value()
        if kind is not None and not ("${" in str(value) or isinstance(value, dict)):
            kind.check(option, value)


def _has(cfg: DictConfig, option: str) -> bool:
    parent = _parent(cfg, option)
    return parent is not None and option.rpartition(".")[2] in list(parent)  # ``in`` on the mapping skips "???" values


def _parent(cfg: DictConfig, option: str) -> DictConfig | None:
    """Return the mapping that contains an option, None if there is none."""
    node: Any = cfg
    for name in option.split(".")[:-1]:
        node = node._get_node(name) if name in node else None
        if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation() or node._is_missing():
            return None
    return node


def _check_added(one: Typed, cfg: DictConfig, base: DictConfig, command: str) -> None:
    """Raise UserError if "+" adds an option that nothing reads, or one that follows from other options."""
    known = {leaf.option for leaf in _leaves(base)}
    for leaf in _leaves(cfg):
        if f"{leaf.option}.".startswith(f"{one.option}.") and leaf.option not in known:
            was_empty = any(leaf.option.startswith(f"{other}.") for other in known)  # null or {}, now with entries
            if _added_kind(leaf.option, base, command) is None and not was_empty:
                raise _no_such(leaf.option, base)


def _check_left_out(one: Typed, base: DictConfig) -> None:
    """Raise UserError if "~" removes an option that is required or does not exist."""
    if not _has(base, one.option):
        raise _no_such(one.option, base)
    parent, name = _parent(base, one.option), one.option.rpartition(".")[2]
    if one.option.startswith(("trainer.", *_FREE, *_ADDED)) and one.option not in _NEEDED:
        return
    parameters = _parameters(parent)
    if parameters is not None and not name.startswith("_") and (name not in parameters or parameters[name][1]):
        return
    raise UserError(f"{one.text}: the option is needed; give it another value instead, {one.option}=...")


def _added_kind(option: str, base: DictConfig, command: str) -> Kind | None:
    """Return the kind of an option that is missing in ``base``, None if nothing would read it."""
    if option.startswith(_FREE):
        return kind_of(command, option)
    parent, name = _parent(base, option), option.rpartition(".")[2]
    if option.startswith(_ADDED) and _takes_any(parent):
        return kind_of(command, option) or ANYTHING
    if parent is None or name.startswith("_"):
        return None
    if option.rpartition(".")[0] == "trainer":
        return None if name in OURS else _trainer_parameters().get(name, (None, True))[0]
    parameters = _parameters(parent)
    return None if parameters is None or name not in parameters else kind_of(command, option) or parameters[name][0]


def _no_such(option: str, base: DictConfig) -> UserError:
    """Return the error for an option that does not exist."""
    parent, _, name = option.rpartition(".")
    ours = OURS.get(name) if parent == "trainer" else None
    remedy = f"it follows from other options; set {ours}" if ours else _renamed(option, base)
    known = [leaf.option for leaf in _leaves(base) if not str(leaf.key).startswith("_") and leaf.option != option]
    known += sorted(groups().difference(known))
    return unknown(option, known, remedy)


def _renamed(option: str, base: DictConfig) -> str:
    """Return what to say of an option that has a new name in ``base``, "" if it has none."""
    new = new_name(option)
    parameters = _parameters(_parent(base, new)) or {}
    known = new != option and (_has(base, new) or is_group(new) or new.rpartition(".")[2] in parameters)
    return f"it is now called {new}" if known else ""


def _parameters(node: DictConfig | None) -> dict[str, tuple[Kind, bool]] | None:
    """Return the parameters of the ``_target_``: name -> (kind, has a default); None if unknown."""
    if node is None or "_target_" not in node:
        return None
    try:
        return _parameters_of(get_object(node["_target_"]))
    except Exception:  # a user's class that cannot be imported is rejected when it is built
        return None


def _takes_any(node: DictConfig | None) -> bool:
    """Whether a mapping may have any key: it is new, a value of an argument, or its ``_target_`` takes any argument."""
    if node is None or "_target_" not in node:
        return True
    try:
        parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
    except Exception:  # rejected when it is built
        return True
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _parameters_of(target: Any) -> dict[str, tuple[Kind, bool]]:
    """Return the named parameters of a function or a class; ``**others`` of a class are those of its base class."""
    bases = target.__mro__ if inspect.isclass(target) else ()
    found: dict[str, tuple[Kind, bool]] = {}
    for function in [vars(base)["__init__"] for base in bases if "__init__" in vars(base)] or [target]:
        parameters = inspect.signature(function).parameters
        try:
            hints = get_type_hints(function)
        except (NameError, TypeError):
            hints = {}
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self":
                kind = kind_of_annotation(hints.get(name, Any)), parameter.default is not parameter.empty
                found.setdefault(name, kind)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


def _trainer_parameters() -> Mapping[str, tuple[Kind, bool]]:
    from lightning import Trainer  # imported late: it takes seconds, and most commands do not need it

    return _parameters_of(Trainer)


@dataclass(frozen=True)
class _Leaf:
    """Option of a configuration: its full name, and the mapping and key of its value. Lists are values."""

    option: str
    parent: DictConfig
    key: Any

    @property
    def node(self) -> Any:
        """The unresolved value."""
        return self.parent._get_node(self.key)

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping with nested options."""
        node = self.node
        special = node._is_none() or node._is_interpolation() or node._is_missing()
        return isinstance(node, DictConfig) and not special and len(node) > 0

    @property
    def value(self) -> Any:
        """The resolved value."""
        value = self.parent[self.key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    def check(self, kind: Kind) -> None:
        """Raise UserError if the value is known and not of the kind."""
        if kind is ANYTHING or self.node._is_missing() or any(text in str(self.node) for text in _READS_DATA):
            return
        try:
            value = self.value
        except (InterpolationKeyError, UnsupportedInterpolationType) as error:
            why = str(error).splitlines()[0]
            given = self.option if self.is_mapping else f"{self.option}={self.node._value()}"  # mappings are long
            raise UserError(f"{given}: {why}; it refers to nothing") from error
        except (OmegaConfBaseException, UserError):
            return  # the value depends on the running job, or is checked elsewhere
        kind.check(self.option, value)


def _leaves(node: DictConfig) -> Iterator[_Leaf]:
    """Yield every option below a mapping that has no nested options."""
    return (one for one in _options(node) if not one.is_mapping)


def _options(node: DictConfig, above: str = "") -> Iterator[_Leaf]:
    """Yield every option below a mapping except Hydra's; a mapping comes before its entries."""
    for key in node:
        inner, option = node._get_node(key), f"{above}{key}"
        if option != "hydra":
            yield (one := _Leaf(option, node, key))
            if one.is_mapping:
                yield from _options(inner, f"{option}.")


def _check_options(cfg: DictConfig, command: str, given: set[str], declared: set[str]) -> None:
    """Check every value of a configuration against the kind of its option; raises UserError.

    ``given`` are the options of the command line, ``declared`` those of them that it did not add: Hydra has found them
    in conf/ or in a folder of the user, whose own options are not in the table.
    """
    of_hydra = []
    for one in _options(cfg):
        is_given = _is_below(one.option, given)
        if one.option in given and one.node._is_missing():
            raise UserError(f"{one.option}=???: ??? stands for a value that is missing; set one")
        if str(one.key).startswith("_"):
            if is_given:
                of_hydra.append(one)
            continue
        kind = kind_of(command, one.option)
        if kind is None:
            if one.is_mapping or not is_given:
                continue  # a key of conf/ that is missing in the table; a test reports it
            kind = _kind_beyond_the_table(one, cfg, command, _is_below(one.option, declared))
        if one.option in given or not one.node._is_interpolation():  # interpolations of conf/ follow from other options
            one.check(kind)
    for one in of_hydra:  # last, because a target is imported, often with PyTorch
        _check_for_hydra(one)


def _check_for_hydra(one: _Leaf) -> None:
    """Check a key by which Hydra builds an object, such as ``_target_``; raises UserError."""
    if one.key not in HYDRAS:
        raise UserError(f"{one.option}: Hydra has no such key; it has {', '.join(HYDRAS)}")
    one.check(HYDRAS[one.key])
    if one.key == "_target_":
        try:
            resolve_name(one.value)
        except Exception as error:  # the user's module may raise any error
            why = " ".join(str(error).split())
            raise UserError(f"{one.option}={one.value}: {HYDRAS[one.key].words} ({why})") from error


def _is_below(option: str, others: set[str]) -> bool:
    """Whether an option is one of ``others`` or below one."""
    return any(f"{option}.".startswith(f"{other}.") for other in others)


def _kind_beyond_the_table(leaf: _Leaf, cfg: DictConfig, command: str, declared: bool) -> Kind:
    """Return the kind of an option missing in the table, from the object built with it; UserError if unknown."""
    parameters = _parameters(leaf.parent) or {}
    if leaf.key in parameters:
        return parameters[leaf.key][0]
    if leaf.option.startswith(_ADDED):
        return ANYTHING
    if leaf.parent is cfg.get("trainer") and leaf.key not in OURS and leaf.key in _trainer_parameters():
        return _trainer_parameters()[leaf.key][0]
    above, node = leaf.option, leaf.parent
    while above := above.rpartition(".")[0]:
        if (kind := kind_of(command, above)) is not None:
            kind.check(above, OmegaConf.to_container(node))
        node = node._get_parent()
    if below := [key for key in COMMANDS[command] if key.startswith(f"{leaf.option}.") and "*" not in key]:
        raise UserError(f"{leaf.option}={shown(leaf.value)}: set the options below it: {', '.join(below[:4])}")
    if declared:
        return ANYTHING
    raise _no_such(leaf.option, cfg)
