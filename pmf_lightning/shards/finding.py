"""From what the user calls ``in`` to the list of images: class folders, or WebDataset tars."""

from pathlib import Path

from tqdm.auto import tqdm

from pmf_lightning.data.image_kinds import is_hidden
from pmf_lightning.data.listing import say_left_out
from pmf_lightning.errors import UserError
from pmf_lightning.shards.input_tars import tar_inputs
from pmf_lightning.shards.inputs import Inputs, folder_inputs
from pmf_lightning.shards.tar_files import find_tars, is_tar


def find_inputs(given: str, classes: int | None, class_names: str | None, workers: int, unpacked: Path) -> Inputs:
    """List the images in ``given``, a folder of class folders or what ``find_tars`` takes; prints what was found.

    ``classes`` and ``class_names`` are of tars (see ``tar_inputs``), whose headers ``workers`` processes read;
    ``unpacked`` is a folder for the plain copies of compressed ones. Raises UserError.
    """
    source = Path(given).expanduser()
    if _holds_class_folders(source):
        if classes is not None or class_names is not None:
            raise UserError("classes and class_names are for tars; class folders have their names: leave both out")
        inputs = folder_inputs(source)
    else:
        tars, others = find_tars(given)
        with tqdm(desc="listing", unit="record", mininterval=0.5) as bar:
            update = lambda done: bar.update(done - bar.n)  # noqa: E731
            inputs = tar_inputs(tars, classes, class_names, workers, update, unpacked)
        if others:
            inputs.left_out.extend(others)
            inputs.said.append(say_left_out(others))
    print("\n".join(inputs.said), flush=True)
    return inputs


def _holds_class_folders(source: Path) -> bool:
    """Say whether ``source`` is to be read as class folders, not as tars; UserError where it is both."""
    entries = [entry for entry in source.iterdir() if not is_hidden(entry.name)] if source.is_dir() else []
    tars = any(is_tar(entry.name) and entry.is_file() for entry in entries)
    if tars and any(entry.is_dir() for entry in entries):
        raise UserError(f"in={source}: it holds tars and folders; give the tars as '{source}/*.tar', or move them away")
    return source.is_dir() and not tars
