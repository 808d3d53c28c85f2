"""Make a folder of 64-pixel emoji for ``data=folder``: python scripts/make_emoji.py ARCHIVE.tgz OUT [subcategory].

The archive comes from ``npm pack emoji-datasource-google@16.0.0``: Google's Noto emoji under the Apache licence 2.0.
Each category becomes a folder of PNG files, with alpha (``data.background`` chooses what is behind it). Skin tones of
one emoji differ little, so only its first form is taken: 1,906 images in 9 categories, or in 98 subcategories.
"""

import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

IMAGES = "package/img/google/64/"


def classes_of(table: list[dict], by: str) -> dict[str, str]:
    """Map the file name of every emoji's first form to its class; swatches and what has no image are left out."""
    known = (one for one in table if one["has_img_google"] and one["category"] != "Component")
    return {one["image"]: one[by].replace(" & ", "-").replace(" ", "-").lower() for one in known}


def make(archive: Path, out: Path, by: str = "category") -> Counter:
    """Write the images of ``archive`` to ``out``/<class>/, where ``by`` is "category" or "subcategory"; count them.

    Raises:
        FileExistsError: ``out`` exists, so that images of two versions never mix.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it or name another folder")
    with tarfile.open(archive) as tar:
        classes = classes_of(json.load(tar.extractfile("package/emoji.json")), by)
        counts = Counter()
        for member in tar:
            name = member.name.removeprefix(IMAGES)
            if not member.name.startswith(IMAGES) or name not in classes:
                continue
            folder = out / classes[name]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(tar.extractfile(member).read())
            counts[folder.name] += 1
    return counts


def main(*given: str) -> None:
    """Make the folder and print the numbers; bad input ends with one line."""
    archive, out, by = (*given, "category")[:3] if 2 <= len(given) <= 3 else ("", "", "")
    if not Path(archive).is_file() or by not in ("category", "subcategory"):
        sys.exit(f"usage: {__doc__.splitlines()[0]}")
    try:
        counts = make(Path(archive), Path(out), by)
    except FileExistsError as error:
        sys.exit(f"error: {error}")
    except (OSError, tarfile.TarError, KeyError) as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"error: {archive}: it is no archive of emoji-datasource-google ({reason})")
    for folder, count in sorted(counts.items()):
        print(f"{count:5} {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
