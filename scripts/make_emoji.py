"""Make a folder of 64-pixel emoji for ``data=folder``: python scripts/make_emoji.py ARCHIVE.tgz OUT.

The archive comes from ``npm pack emoji-datasource-google@16.0.0``: Google's Noto emoji under the Apache licence 2.0.
Each category becomes a folder of PNG files, with alpha (``data.background`` chooses what is behind it). Skin tones of
one emoji differ little, so only its first form is taken: 1,906 images in 9 categories.
"""

import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

IMAGES = "package/img/google/64/"


def categories_of(table: list[dict]) -> dict[str, str]:
    """Map the file name of every emoji's first form to its category; swatches and what has no image are left out."""
    known = (one for one in table if one["has_img_google"] and one["category"] != "Component")
    return {one["image"]: one["category"] for one in known}


def make(archive: Path, out: Path) -> Counter:
    """Write the images of ``archive`` to ``out``/<category>/; return their numbers by category.

    Raises:
        FileExistsError: ``out`` exists, so that images of two versions never mix.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it or name another folder")
    with tarfile.open(archive) as tar:
        category = categories_of(json.load(tar.extractfile("package/emoji.json")))
        counts = Counter()
        for member in tar:
            name = member.name.removeprefix(IMAGES)
            if not member.name.startswith(IMAGES) or name not in category:
                continue
            folder = out / category[name].replace(" & ", "-").replace(" ", "-").lower()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(tar.extractfile(member).read())
            counts[folder.name] += 1
    return counts


def main(*given: str) -> None:
    """Make the folder and print the numbers; bad input ends with one line."""
    if len(given) != 2 or not Path(given[0]).is_file():
        sys.exit(f"usage: {__doc__.splitlines()[0]}")
    try:
        counts = make(*map(Path, given))
    except FileExistsError as error:
        sys.exit(f"error: {error}")
    except (OSError, tarfile.TarError, KeyError) as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"error: {given[0]}: it is no archive of emoji-datasource-google ({reason})")
    for folder, count in sorted(counts.items()):
        print(f"{count:5} {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
