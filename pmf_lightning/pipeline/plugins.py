"""Packages of the user whose classes and functions a stored configuration may build.

They are named by ``trust=[my_package]``, by the environment variable PMF_TRUST=my_package,another, or by an entry point
of an installed package, in its pyproject.toml:

    [project.entry-points."pmf_lightning.plugins"]
    my_package = "my_package"

Python's own modules and the libraries that this package needs cannot be trusted: a stored configuration could run
anything through them (torch.hub.load, for example).
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires

from pmf_lightning.utils.errors import UserError

GROUP, VARIABLE = "pmf_lightning.plugins", "PMF_TRUST"
_OURS = "pmf_lightning"
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


def trusted(trust: Sequence[str] = ()) -> frozenset[str]:
    """Return the packages of ``trust``, of PMF_TRUST and of installed plugins.

    Raises UserError for anything but the name of a package of the user.
    """
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    sources = {f"{VARIABLE}={','.join(named)}": named, f"trust=[{','.join(map(str, trust))}]": trust}
    for source, names in sources.items():
        for name in names:
            _check(name, source)
    return frozenset([*trust, *named, *_installed_plugins()]) - {_OURS}


def remedy(packages: Iterable[str]) -> str:
    """Return what to add so that these packages are trusted, "" if one of them cannot be ("" stands for none)."""
    names = list(dict.fromkeys(packages))
    if not all(name.isidentifier() and not _is_library(name) for name in names):
        return ""
    listed = ",".join(names)
    return f"; if you trust that code, add trust=[{listed}], or set {VARIABLE}={listed}"


def _check(name: str, source: str) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"{source}: {name} is not the name of a package; give its first part, such as trust=[my_flow]")
    if name != _OURS and _is_library(name):
        raise UserError(
            f"{source}: {name} is a library, through which a stored configuration could run anything; name the package "
            "of your own classes"
        )


@cache
def _installed_plugins() -> frozenset[str]:
    """Return the packages that entry points name; none of them is imported."""
    return frozenset(entry.module.partition(".")[0] for entry in entry_points(group=GROUP))


def _is_library(package: str) -> bool:
    """Whether a package is Python's own, or of a library that pmf_lightning needs."""
    return package in sys.stdlib_module_names or package in sys.builtin_module_names or package in _libraries()


@cache
def _libraries() -> frozenset[str]:
    """Return the packages of all distributions that pmf_lightning needs, directly or through others."""
    needed, waiting = set(), [_OURS]
    while waiting:
        try:
            lines = requires(waiting.pop()) or []
        except PackageNotFoundError:
            continue
        names = {_normal(_REQUIREMENT.match(line)[0]) for line in lines}
        waiting += names - needed
        needed |= names
    return frozenset(package for package, of in packages_distributions().items() if needed & set(map(_normal, of)))


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
