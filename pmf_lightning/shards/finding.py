"""From what the user calls ``in`` to the list of images: class folders, or WebDataset tars."""

from pathlib import Path

from tqdm.auto import tqdm

from pmf_lightning.errors import UserError
from pmf_lightning.shards.input_tars import find_tars, tar_inputs
from pmf_lightning.shards.inputs import Inputs, folder_inputs


def find_inputs(given: str, classes: int | None, class_names: str | None, workers: int) -> Inputs:
    """List the images in ``given``, a folder of class folders or what ``find_tars`` takes; prints what was found.

    ``classes`` and ``class_names`` are of tars (see ``tar_inputs``), whose headers ``workers`` processes read. Raises
    UserError.
    """
    source = Path(given).expanduser()
    if _holds_class_folders(source):
        if classes is not None or class_names is not None:
            raise UserError("classes and class_names are for tars; class folders have their names: leave both out")
        try:
            inputs = folder_inputs(source)
        except UserError as error:  # of the code that reads data=folder
            raise UserError(str(error).replace("data.root=", "in=")) from error
    else:
        tars = find_tars(given)
        with tqdm(desc="listing", unit="record", mininterval=0.5) as bar:
            inputs = tar_inputs(tars, classes, class_names, workers, lambda done: bar.update(done - bar.n))
    print(f"{len(inputs):,} images of {len(inputs.class_names):,} classes in {given}", flush=True)
    return inputs


def _holds_class_folders(source: Path) -> bool:
    """Say whether ``source`` is to be read as class folders, not as tars; UserError where it is both."""
    tars = source.is_dir() and any(source.glob("*.tar"))
    if tars and any(entry.is_dir() and not entry.name.startswith(".") for entry in source.iterdir()):
        raise UserError(f"in={source}: it holds tars and folders; give the tars as '{source}/*.tar', or move them away")
    return source.is_dir() and not tars
