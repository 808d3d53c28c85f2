"""Experiments at two scales: ``experiment=pmf_table2 scale=paper`` picks conf/experiment/paper/pmf_table2.yaml."""

from collections.abc import Sequence
from pathlib import Path

from pmf_lightning.errors import UserError, near

SCALES = ("small", "paper")


def at_scale(overrides: Sequence[str], experiments: Path) -> list[str]:
    """Return the overrides with ``scale=`` taken into ``experiment=``; those without an experiment as they are.

    ``experiments`` is the folder of the experiment files. The scale is small where none is given. Raises UserError for
    an unknown scale, one without an experiment, or one that the experiment does not have.
    """
    given = dict(override.split("=", 1) for override in overrides if override.startswith(("scale=", "experiment=")))
    scale, name = given.get("scale"), given.get("experiment")
    if scale not in (None, *SCALES):
        raise UserError(f"scale={scale}: experiments have the scales {' and '.join(SCALES)}; {near(scale, SCALES)}")
    if name is None:
        if scale is not None:
            raise UserError(f"scale={scale}: it belongs to an experiment; add experiment=")
        return list(overrides)
    if "," in name:
        raise UserError(f"experiment={name}: an experiment is a sweep by itself; take one after the other")
    chosen = f"{scale or SCALES[0]}/{name}"
    if (experiments / f"{chosen}.yaml").is_file():
        rest = (f"experiment={chosen}" if o == f"experiment={name}" else o for o in overrides)
        return [override for override in rest if override != f"scale={scale}"]
    files = sorted(path.relative_to(experiments).with_suffix("").as_posix() for path in experiments.rglob("*.yaml"))
    if name in files:
        if scale is not None:
            raise UserError(f"scale={scale}: experiment={name} has one scale only; leave scale= out")
        return list(overrides)
    if there := [file.split("/")[0] for file in files if file.endswith(f"/{name}")]:
        asked = f"experiment={name}" + (f" scale={scale}" if scale else "")
        raise UserError(f"{asked}: it has the scale {there[0]} only; set scale={there[0]}")
    raise UserError(f"experiment={name}: there is no such experiment; {near(name, {Path(f).name for f in files})}")
