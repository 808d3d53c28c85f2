"""Config folders of the user, which extend conf/: --config-dir, hydra.searchpath=[...] and PMF_CONF.

All three become one list in the environment variable PMF_CONF, so that every process of a command inherits it. A Hydra
plugin adds the list to the search path of every composition, after conf/: a file of conf/ wins over one of its name.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin

from pmf_lightning.utils.errors import UserError

VARIABLE = "PMF_CONF"  # entries as in PATH: folders, file://folder or pkg://package.folder
OPTION = "hydra.searchpath"
_FLAGS = ("--config-dir", "-cd")
_SEPARATOR = re.compile(rf"{re.escape(os.pathsep)}(?!//)")  # the colon of file:// separates nothing
_HERE = Path(__file__).resolve().parent.parent
# An installed package contains conf/; in a checkout it is next to the package.
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"


class _UserFolders(SearchPathPlugin):
    """Hydra plugin that appends the user's folders to each search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the entries of PMF_CONF."""
        for entry in entries():
            search_path.append(provider=VARIABLE, path=entry)


def register() -> None:
    """Register the plugin with Hydra; further calls have no effect."""
    Plugins.instance().register(_UserFolders)


def entries() -> tuple[str, ...]:
    """Return the active entries, each as file://<absolute folder> or pkg://<package>."""
    return tuple(_entry(one, VARIABLE)[0] for one in _SEPARATOR.split(os.environ.get(VARIABLE, "")) if one.strip())


def folders() -> tuple[Path, ...]:
    """Return conf/ and the folders of the active entries, in the order in which Hydra searches them."""
    return CONF, *(_entry(entry, VARIABLE)[1] for entry in entries())


def arguments() -> list[str]:
    """Return the arguments of a command with which another one has the same search path."""
    files = [entry.removeprefix("file://") for entry in entries() if entry.startswith("file://")]
    packages = [entry for entry in entries() if not entry.startswith("file://")]
    listed = [f"{OPTION}=[{','.join(packages)}]"] if packages else []
    return [*(f"{_FLAGS[0]}={folder}" for folder in files), *listed]


@contextmanager
def added(more: Sequence[str]) -> Iterator[None]:
    """Add entries to the search path of this process and of those that it starts, until the context ends."""
    before = os.environ.get(VARIABLE)
    active = entries()
    if new := [entry for entry in dict.fromkeys(more) if entry not in active]:
        os.environ[VARIABLE] = os.pathsep.join([*active, *new])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def taken_from(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without --config-dir and hydra.searchpath, and the entries that these name.

    Raises UserError for a folder or a package that does not exist.
    """
    left: list[str] = []
    found: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in _FLAGS:
            value = value if equals else next(waiting, "")
            found.append(_entry(value, f"{name} {value}".strip())[0])
        elif name.lstrip("+") == OPTION:
            found += [_entry(one, argument)[0] for one in _listed(argument)]
        else:
            left.append(argument)
    return left, found


def _listed(override: str) -> list[str]:
    """Return the entries of an override hydra.searchpath=[...]; raises UserError for anything but a list of texts."""
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException as error:
        why = " ".join(str(error).split())
        raise UserError(f"{override}: Hydra cannot read the list ({why}); write {OPTION}='[\"file://...\"]'") from error
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UserError(f"{override}: give a list, such as {OPTION}=[file://myconf,pkg://my_package.conf]")
    return [str(one) for one in value]


def _entry(text: str, source: str) -> tuple[str, Path]:
    """Return an entry in its full form, and its folder; raises UserError, naming ``source``, if it does not exist."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "file", text.strip()
    if scheme == "pkg":
        name = rest.replace("/", ".").rstrip(".")  # as Hydra reads it
        if (folder := _package_folder(name)) is None:
            raise UserError(f"{source}: there is no package {name}; install it, or put its folder on PYTHONPATH")
        namespace = folder.is_dir() and not (folder / "__init__.py").exists()  # no package for Hydra 1.4
        return f"file://{folder.absolute()}" if namespace else f"pkg://{name}", folder
    if scheme != "file":
        raise UserError(f"{source}: {scheme}:// is unknown; give a folder, file://folder or pkg://package")
    if not rest:
        raise UserError(f"{source}: the name of the folder is missing; give one with groups in it, such as model/")
    folder = Path(rest).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{source}: there is no folder {folder}; give one with groups in it, such as model/")
    return f"file://{folder}", folder


def _package_folder(name: str) -> Path | None:
    """Return the folder of a package, None if it cannot be found."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None
