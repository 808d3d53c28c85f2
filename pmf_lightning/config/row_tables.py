"""Tables in files of conf/: an option such as backbone.size names a row of the table backbone.sizes.

Options below the same part take their values from that row, as ``width: ${picked:backbone.size,width}``; on the command
line each of them can still be set by itself. Stored configurations and constructors get the values only.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from pmf_lightning.utils.errors import UserError, suggestions

PICKED = ("backbone.size", "objective.time_sampling")  # the table has this name with an s
_NOT_STORED = ("hydra", "paper", "trust")


def picked(option: str, column: str, *, _root_: DictConfig) -> Any:
    """Resolver: return a value of the row that ``option`` names. Raises UserError if the table has no such row."""
    check(_root_, option)
    return OmegaConf.select(_root_, f"{option}s.{OmegaConf.select(_root_, option)}.{column}", throw_on_missing=True)


def check(cfg: DictConfig, *options: str) -> None:
    """Raise UserError if an option, of ``PICKED`` without ``options``, names a row that its table does not have."""
    for option in options or PICKED:
        part, _, name = option.partition(".")
        if f"{name}s" not in (OmegaConf.select(cfg, part) or {}):
            continue
        row, table = OmegaConf.select(cfg, option), OmegaConf.select(cfg, f"{option}s")
        if not OmegaConf.is_dict(table):
            shown = "null" if table is None else table
            raise UserError(f"{option}s={shown}: it is a table of rows; leave it out, and choose a row by {option}=")
        if row not in table:
            raise UserError(f"{option}={row}: there is no such row of {option}s; {suggestions(str(row), table)}")


def without_table(cfg: DictConfig, part: str) -> Any:
    """Return ``cfg[part]`` without its table and the option that names the row.

    Its values are resolved, because Hydra 1.4 instantiates a node below the parent that its interpolations refer to,
    which still has the table.
    """
    for option in PICKED:
        name = option.removeprefix(f"{part}.")
        if name != option and f"{name}s" in cfg[part]:
            values = OmegaConf.to_container(cfg[part], resolve=True)
            del values[name], values[f"{name}s"]
            return OmegaConf.create({part: values}, flags={"allow_objects": True})[part]
    return cfg[part]


def stored(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as checkpoints store it: resolved, without tables, `hydra`, `paper` and `trust`."""
    selected = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in _NOT_STORED])
    config = OmegaConf.to_container(selected, resolve=True)
    for option in PICKED:
        part, _, name = option.partition(".")
        if f"{name}s" in (values := config.get(part) or {}):
            del values[name], values[f"{name}s"]
    return config
