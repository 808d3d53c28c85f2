"""Labels 0 to K - 1 of tar inputs, from the class numbers of records or the names of tars and folders."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pmf_lightning.data.images.class_folders import SPLIT, in_order
from pmf_lightning.data.shards.writing.tar_files import tar_stem
from pmf_lightning.utils.errors import UserError

FAR_APART = 100  # with at least this many unused numbers, and more unused than used, numbers are names, not labels
SHARD_NAME = re.compile(r"(.*?)([0-9]{3,})")


def by_number(
    labels: Int64[np.ndarray, " n"], keys: list[str], classes: int | None, names_file: str | None
) -> tuple[Int64[np.ndarray, " n"], list[str], str | None]:
    """Return labels, class names, and a message if the numbers were remapped.

    Sparse numbers (WordNet ids, years) are remapped to 0 to K - 1 in order, unless ``names_file`` names them or
    ``classes`` is another number than K. Raises UserError for inconsistent input.
    """
    used, places = np.unique(labels, return_inverse=True)
    empty = int(used[-1]) + 1 - len(used)
    sparse = empty >= FAR_APART and empty > len(used)
    names = None if names_file is None else _read_names(names_file)
    count = classes if classes is not None else None if names is None else len(names)
    if sparse and names is None and count in (None, len(used)):
        message = f"the class numbers are far apart: {used[0]}, ..., {used[-1]} become 0 to {len(used) - 1}"
        remedy = "" if used[-1] > 100_000 else f" (classes={used[-1] + 1} or more leaves them as they are)"
        return places.astype(np.int64), [str(number) for number in used], message + remedy
    count = int(used[-1]) + 1 if count is None else count
    worst = int(labels.argmax())
    if labels[worst] >= count:
        remedy = "leave classes out, then they become 0, 1, ..." if sparse and names is None else "raise classes"
        raise UserError(f"classes={count}, but {keys[worst]} has the label {labels[worst]}; {remedy}")
    if names is not None and len(names) != count:
        raise UserError(f"class_names={names_file}: {len(names)} names for {count} classes; give one in each line")
    return labels, names or [str(label) for label in range(count)], None


def _read_names(names_file: str) -> list[str]:
    try:
        return Path(names_file).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class_names={names_file}: cannot be read ({error}); one name per line") from error


def by_name(files: list[str], inner: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """Return the class name and key of every image, for images without labels.

    The class is the nested tar of the image; without nested tars, its tar if there are several; else its folder inside
    the single tar. ``files`` are the tars, ``names`` the paths inside. Raises UserError if these are not classes.
    """
    tars = sorted({tar_stem(file) for file in files})
    if any(inner):
        chosen = [one or tar_stem(file) for one, file in zip(inner, files, strict=True)]
    elif len(tars) > 1:
        if _are_shards(tars):
            raise UserError(
                f"in={files[0]}: no image with a label (.cls), and {tars[0]}, {tars[1]}, ... are not names of classes; "
                "give tars with labels, or a tar or folder per class"
            )
        chosen = [tar_stem(file) for file in files]
    else:
        return _by_folder(tars[0], names), names
    return chosen, [f"{one}/{name}" for one, name in zip(chosen, names, strict=True)]


def _are_shards(tars: list[str]) -> bool:
    """Return whether the names of tars are consecutive numbers 000, 001, 002, ..."""
    parts = [SHARD_NAME.fullmatch(tar) for tar in tars]
    if not all(parts) or len({part[1] for part in parts}) > 1:
        return False
    numbers = sorted(int(part[2]) for part in parts)
    return numbers[0] in (0, 1) and numbers[-1] - numbers[0] + 1 == len(numbers)


def _by_folder(tar: str, names: list[str]) -> list[str]:
    """Return the first folder of every image below the common path of all images; the tar's name if there is none."""
    folders = [name.split("/")[:-1] for name in names]
    while all(folders) and len({one[0] for one in folders}) == 1 and any(len(one) > 1 for one in folders):
        folders = [one[1:] for one in folders]
    if not all(folders):
        return [tar] * len(names)
    found = in_order(list({one[0] for one in folders}))
    if len(found) > 1 and all(SPLIT.fullmatch(name) for name in found):
        listed = ", ".join(found)
        raise UserError(f"in={tar}: its folders {listed} are splits, not classes: unpack it and give one of them")
    return [one[0] for one in folders]
