"""Where the released flax weights of drifting lie, what is written beside them, and whether names are those wanted."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pmf_lightning.bounded import read_json
from pmf_lightning.errors import UserError

# Files of a release, and of a run's folder as older code wrote them: weights, and what they are of.
FILES = (("ema_params.msgpack", "metadata.json"), ("ema_model.msgpack", "ema_model.metadata.json"))
_MOST_LISTED = 6  # names of one kind of problem in an error


def find(path: str | Path) -> tuple[Path, Path]:
    """Return the file of weights at ``path``, a file or the folder of a release, and where its metadata would be.

    Raises UserError for a folder without such a file.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path, path.with_name(dict(FILES).get(path.name, FILES[0][1]))
    for folder in (path / "params_ema", path):
        for weights, metadata in FILES:
            if (folder / weights).is_file():
                return folder / weights, folder / metadata
    raise UserError(f"{path}: this folder holds no {FILES[0][0]}; give the folder of a release, or the file")


def is_release(path: str | Path) -> bool:
    """Whether ``path`` is named as a .msgpack, or is a folder that holds released weights."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path.suffix == ".msgpack"
    return any((folder / weights).is_file() for folder in (path / "params_ema", path) for weights, _ in FILES)


def sizes(path: str | Path, what: str, read: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``read`` makes of the model_config in the metadata beside the weights at ``path``.

    Raises UserError for metadata that are missing or not those of ``what``.
    """
    _, metadata = find(path)
    if not metadata.is_file():
        raise UserError(f"{path}: no metadata.json beside the weights; give the sizes of the network yourself")
    try:
        return read(read_json(metadata)["model_config"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{metadata}: no model_config of {what} in it ({type(error).__name__})") from error


def without_root(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return arrays without a leading "params/" in their names."""
    return {name.removeprefix("params/"): value for name, value in official.items()}


def check_names(source: str, missing: Iterable[str], unknown: Iterable[str], question: str) -> None:
    """Raise UserError, with ``question`` as the remedy, where names are missing or of no weight of the network."""
    for what, names in (("lacks", sorted(missing)), ("holds, and this network has not,", sorted(unknown))):
        if names:
            more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
            raise UserError(f"{source}: it {what} {', '.join(names[:_MOST_LISTED])}{more}; {question}")
