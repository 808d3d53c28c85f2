"""Class names of a run: print and store them at the start, and require the same ones when the run resumes."""

import json
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.images.class_folders import describe_classes
from pmf_lightning.pipeline.class_names import CLASSES_FILE as NAME
from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.errors import NotResumed


@rank_zero_only
def announce_classes(source: DataSource, folder: Path) -> None:
    """Print the number and names of the classes; write all names and the unused files to classes.json."""
    names = source.class_names
    if names is None:
        return
    left_out = [one._asdict() for one in source.left_out]
    with atomic_write(folder / NAME) as draft:
        draft.write_text(json.dumps({"class_names": names, "left_out": left_out}, indent=1) + "\n")
    print(f"  {describe_classes(names)}; label i is class_names[i] of {NAME}")


def check_same_classes(source: DataSource, checkpoint: Path | None) -> None:
    """Raise NotResumed if a label means another class than in the checkpoint's run; None as checkpoint: no check."""
    names = None if checkpoint is None else source.class_names
    if names is None:
        return
    known = _known(source, checkpoint.absolute().parent.parent / NAME)
    if known is not None and known != names:
        pairs = enumerate(zip(known, names, strict=False))
        label = next((label for label, (then, now) in pairs if then != now), min(len(known), len(names)))
        then, now = (one[label] if label < len(one) else "none" for one in (known, names))
        raise NotResumed(
            f"ckpt={checkpoint}: label {label} was the class {then} and is now {now} ({len(known)} and {len(names)} "
            "classes); restore the class folders, or start a new run in another run_dir"
        )


def _known(source: DataSource, path: Path) -> list[str] | None:
    """Return the class names of a run. Earlier versions stored none and sorted the class folders alphabetically."""
    try:
        names = read_json(path)["class_names"]
    except FileNotFoundError:
        return source.older_class_names
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
