"""Data sets in tables, as the Hugging Face hub has them: parquet files, and folders of save_to_disk."""

import io
import json

import numpy as np
from PIL import Image

CLASSES = ["cat", "dog"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}


def encoded(number, side=20):
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side + number % 3, 3), 5 * number % 256, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def table_of(numbers, features=FEATURES, **columns):
    """A table of those pictures with labels 0, 1, 0, 1, ..., or with other columns."""
    import pyarrow as pa

    images = [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    made = {"image": pa.array(images, kind), "label": pa.array([number % 2 for number in numbers], pa.int64())}
    table = pa.table({name: column for name, column in (made | columns).items() if column is not None})
    about = {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    return table.replace_schema_metadata(about)


def write_parquet(folder, images=24, held_out=6, **options):
    """Two files of the split train in row groups of five, and one of test."""
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    half = images // 2
    splits = {"train-00000-of-00002": range(half), "train-00001-of-00002": range(half, images)}
    splits["test-00000-of-00001"] = range(images, images + held_out)
    for name, numbers in splits.items():
        parquet.write_table(table_of(numbers, **options), folder / "data" / f"{name}.parquet", row_group_size=5)
    return folder


def write_saved(folder, images=24, names=("image", "label")):
    """What save_to_disk writes: a dictionary of splits, with files in Arrow's format of streams."""
    import pyarrow as pa

    for split, numbers in {"train": range(images), "test": range(images, images + 6)}.items():
        (folder / split).mkdir(parents=True)
        table = table_of(numbers, features=None).rename_columns(names)
        path = str(folder / split / "data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (folder / split / "state.json").write_text(json.dumps(state))
        features = dict(zip(names, FEATURES.values(), strict=True))
        (folder / split / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return folder
