"""data=hf: parquet files, folders of save_to_disk and sets of the hub, and what is refused in one line."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from read_images import read_image
from table_files import CLASSES, encoded, table_of, write_parquet, write_saved

from pmf_lightning import UserError, compose
from pmf_lightning.data.shards.source import Shards
from pmf_lightning.data.shards.tar import read_index
from pmf_lightning.data.shards.writing.table_inputs import OPTIONS
from pmf_lightning.data.sources.hf import files
from pmf_lightning.pipeline.parts import make_source
from pmf_lightning.shard import shard

INSTALLED = importlib.util.find_spec("pyarrow") is not None
pytestmark = pytest.mark.skipif(not INSTALLED, reason='needs pyarrow: pip install "pmf_lightning[hf]"')
SIDE = 16


def source(root, cache, *overrides):
    options = [f"data.root={root}", f"data.resolution={SIDE}", f"data.cache_dir={cache}", *overrides]
    made = make_source(compose(["data=hf", *options]))
    made.check()
    return made


@pytest.fixture
def folder(tmp_path):
    return write_parquet(tmp_path / "pets")


def pixels(numbers):
    return torch.from_numpy(np.stack([read_image(encoded(number), SIDE, 3) for number in numbers]))


@pytest.mark.parametrize("write", [write_parquet, write_saved])
def test_images_labels_and_names(write, tmp_path):
    found = source(write(tmp_path / "set"), tmp_path / "cache", "data.held_out_split=test")
    assert found.class_names == CLASSES
    images, labels = found.train().batch(list(range(24)))
    assert torch.equal(images, pixels(range(24)))
    assert torch.equal(labels, torch.arange(24) % 2)
    assert torch.equal(found.held_out().batch([5, 0])[0], pixels([29, 24]))


def test_the_recipes_of_the_docs_read_local_folders(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    section = re.search(r"## Hugging Face.*?```bash\n(.*?)```", page, re.S)[1]
    recipes = [shlex.split(line, comments=True)[2:] for line in section.splitlines() if "data.root=/data/" in line]
    write_parquet(tmp_path / "flowers-parquet")
    write_saved(tmp_path / "saved", names=("photo", "species"))
    found = {}
    for recipe in recipes:
        root = next(Path(option).name for option in recipe if option.startswith("data.root="))
        more = [option for option in recipe if option.startswith("data.") and not option.startswith("data.root=")]
        found[root] = source(tmp_path / root, tmp_path / "cache", *more)
        assert len(found[root].train()) + len(found[root].held_out()) == 24
    assert {root: one.class_names for root, one in found.items()} == {
        "flowers-parquet": ["flowers-parquet"],
        "saved": CLASSES,
    }


def test_a_fraction_of_every_class_is_held_out(folder, tmp_path):
    found = source(folder, tmp_path / "cache", "data.held_out_fraction=0.25")
    train, held = found.train(), found.held_out()
    assert (len(train), held.labels.bincount().tolist()) == (18, [3, 3])
    both = torch.cat([part.batch(list(range(len(part))))[0] for part in (train, held)])
    assert {tuple(image.flatten().tolist()) for image in both} == {
        tuple(image.flatten().tolist()) for image in pixels(range(24))
    }


def test_classes_without_names_and_none(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    texts = pa.array(["b", "a", "c"] * 4)
    parquet.write_table(table_of(range(12), features=None, label=texts), tmp_path / "some.parquet")
    found = source(tmp_path / "some.parquet", tmp_path / "cache", "data.held_out_fraction=0")
    assert (found.class_names, found.train().labels[:3].tolist()) == (["a", "b", "c"], [1, 0, 2])
    one = source(tmp_path, tmp_path / "cache", "data.label_column=none")
    assert (one.classes, one.class_names) == (1, [tmp_path.name])


def test_cells_without_an_image_are_counted_or_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    cells = [{"bytes": encoded(n) if n != 3 else None, "path": "3.png"} for n in range(12)]
    parquet.write_table(table_of(range(12), image=pa.array(cells)), tmp_path / "train.parquet")
    with pytest.warns(UserWarning, match="1 of 12 images cannot be read and are skipped, first row 3: ValueError"):
        assert len(source(tmp_path, tmp_path / "c", "data.held_out_fraction=0").train()) == 11
    with pytest.raises(UserError, match=r"cannot read .*row 3 .*the cell holds no image"):
        source(tmp_path, tmp_path / "d", "data.unreadable=fail").train()
    with pytest.raises(UserError, match=r"cannot read .*row 3 .*the cell holds no image"):
        source(tmp_path, tmp_path / "c", "data.unreadable=fail").train()  # decoded by a run that skipped it


def test_a_class_without_a_readable_image_is_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    cells = [{"bytes": encoded(n) if n % 2 else None, "path": f"{n}.png"} for n in range(12)]
    parquet.write_table(table_of(range(12), image=pa.array(cells)), tmp_path / "train.parquet")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError, match=rf"^class cat of train in {tmp_path} holds no readable image: repair or"):
            source(tmp_path, tmp_path / "cache").train()


def test_a_class_without_rows_is_none_that_is_unreadable(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = table_of(range(12), label=pa.array([1] * 12, pa.int64()))
    parquet.write_table(table, tmp_path / "train.parquet")
    assert source(tmp_path, tmp_path / "cache").train().labels.tolist() == [1] * 11


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/test-00000-of-00001-a09b74b3ef9c3b56.parquet", "test"),  # as the hub named files until 2023
        ("flowers_test.parquet", "test"),
        ("default/validation/0000.parquet", "validation"),
        ("latest.parquet", "train"),
        ("Test.parquet", "test"),
        ("testing.parquet", "test"),
        ("pets_TRAINING.parquet", "train"),
        ("eval.parquet", "eval"),
        ("train/part/a.parquet", "train"),
    ],
)
def test_splits_are_words_in_the_names_of_files(name, split, tmp_path):
    write_parquet(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "test-00000-of-00001.parquet").rename(tmp_path / name)
    assert [file.relative_to(tmp_path).as_posix() for file in files.local_splits(tmp_path)[split]][-1] == name


def test_cells_that_name_a_file_are_read_from_it(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    cells = [{"bytes": None, "path": str(tmp_path / f"{number}.png")} for number in range(6)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(table_of(range(6), image=pa.array(cells, kind)), tmp_path / "train.parquet")
    found = source(tmp_path, tmp_path / "cache", "data.held_out_fraction=0")
    assert torch.equal(found.train().batch(list(range(6)))[0], pixels(range(6)))


WRONG = {
    "data.split=validation": "has no such split; known: test, train",
    "data.subset=large": "there is no such folder",
    "data.image_column=picture": "has no such column; known: image, label",
    "data.image_column=label": "it holds no encoded images .int64.; columns of images are image",
    "data.label_column=lable": "has no such column; did you mean label",
    "data.label_column=image": "is no class",
    "data.held_out_split=train": "it is trained on",
    "data.classes=1000": "there are 2 classes; leave it out",
}


@pytest.mark.parametrize("override", WRONG)
def test_bad_input_is_one_line(override, folder, tmp_path):
    with pytest.raises(UserError, match=f"^{override}: .*{WRONG[override]}") as error:
        source(folder, tmp_path / "cache", *([override] if "classes" in override else ["data.classes=2", override]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [0, 1, 2, -1]}, "2 labels are out of range, such as 2 of 2 classes"),
        ({"label": [0.0, 1.0, 0.0, 1.0]}, "0.0 is no class"),
        ({"label": [0, 1, None, 1]}, "1 of 4 rows have no label"),
        ({"image": ["a.png"] * 4}, "no column holds encoded images"),
        ({"mask": [b"1"] * 4}, "several columns hold images .image, mask."),
    ],
)
def test_bad_columns_are_one_line(columns, words, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    made = {name: pa.array(values) for name, values in columns.items()}
    parquet.write_table(table_of(range(4), **made), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=words):
        source(tmp_path, tmp_path / "cache", "data.classes=2")


@pytest.mark.parametrize("features", [None, ["image", "label"], {"label": {"_type": "ClassLabel", "names": CLASSES}}])
def test_texts_are_their_own_classes_whatever_the_metadata_say(features, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    texts = pa.array(["red", "blue", "red", "blue"])
    parquet.write_table(table_of(range(4), features, label=texts), tmp_path / "train.parquet")
    found = source(tmp_path, tmp_path / "cache", "data.held_out_fraction=0")
    assert list(found.class_names) == ["blue", "red"]
    assert found.train().labels.tolist() == [1, 0, 1, 0]


def test_a_split_in_several_folders_is_refused(tmp_path):
    root = tmp_path / "set"
    for name in ("full", "clean"):
        write_parquet(root / name)
    words = f"split=train: {root} has it in several folders, clean/data/, full/data/; set {{}}subset=full/data, or"
    for options in (files.DATA_HF, OPTIONS):
        with pytest.raises(UserError, match=f"^{options.prefix}{words.format(options.prefix)}"):
            files.open_tables(str(root), None, "train", options)
    assert sum(part.rows for part in files.open_tables(str(root), "clean/data", "train").parts) == 24
    (root / "full").rename(root / "train")
    with pytest.raises(UserError, match=r"in several folders, \./, clean/data/; set data.subset=clean/data"):
        files.open_tables(str(root), None, "train")


def test_a_table_without_rows_is_refused(tmp_path):
    from pyarrow import parquet

    parquet.write_table(table_of([]), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"^data.split=train: it has no rows in {tmp_path}; name another split"):
        source(tmp_path, tmp_path / "cache", "data.classes=2")


def test_captions_are_no_classes(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    texts = pa.array([f"a photo of {number}" for number in range(120)])
    (file := tmp_path / "set" / "train.parquet").parent.mkdir()
    parquet.write_table(table_of(range(120), features=None, text=texts), file)
    words = "label_column=text: 120 different values for 120 images are captions"
    with pytest.raises(UserError, match=f"^data.{words}"):
        source(file, tmp_path / "cache", "data.label_column=text")
    with pytest.raises(UserError, match=f"^{words}"):
        shards_of(f"hf:{file}", tmp_path / "out", "label_column=text")


@pytest.mark.parametrize(
    ("root", "words"),
    [("null", "give the name of a set on the hub"), ("nowhere", "no such folder"), ("empty", "holds no parquet files")],
)
def test_a_wrong_root_is_one_line(root, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        source(root, tmp_path / "cache", "data.classes=2")


def test_a_damaged_file_is_one_line(folder, tmp_path):
    file = folder / "data" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet is damaged"):
        source(folder, tmp_path / "cache", "data.classes=2")


def test_without_the_extra_it_says_what_to_install(folder, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(files, "import_module", missing)
    with pytest.raises(UserError, match=r'pyarrow is not installed; pip install "pmf_lightning\[hf\]"'):
        source(folder, tmp_path / "cache", "data.classes=2")


def test_a_set_of_the_hub_is_loaded_in_full(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason='needs datasets: pip install "pmf_lightning[hf]"')
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        if options["split"] == "dev":
            raise ValueError('Unknown split "dev". Should be one of\n["train"].')
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
        rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(12)], "label": [0, 1] * 6}
        return datasets.Dataset.from_dict(rows, kinds)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = source("some/pets", tmp_path / "cache", "data.subset=small", "data.held_out_fraction=0")
    assert found.class_names == CLASSES
    assert torch.equal(found.train().batch([7])[0], pixels([7]))
    assert asked == [(("some/pets", "small"), {"split": "train", "streaming": False})]
    with pytest.raises(UserError, match=r"data.root=some/pets data.split=dev: it cannot be loaded \(Unknown split"):
        source("some/pets", tmp_path / "cache", "data.split=dev", "data.classes=2")


def shards_of(given, out, *options):
    cfg = compose(["size=16", "num_workers=1", "records_per_shard=7", "max_unreadable=0.2", *options], "shard")
    return shard(OmegaConf.merge(cfg, {"in": given, "out": str(out)}))


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_parquet, write_saved])
def test_shards_hold_the_images_of_the_table(write, tmp_path, capsys):
    made = shards_of(f"hf:{write(tmp_path / 'set')}", tmp_path / "shards")
    assert (made.manifest.count, made.manifest.class_names, made.manifest.per_class) == (24, CLASSES, [12, 12])
    assert "24 images of 2 classes" in capsys.readouterr().out
    read = Shards("shards", str(tmp_path / "shards"), 16, 3, 2, 0.0, 0.0).train()
    keys = [key for entry in made.manifest.shards for key in read_index(tmp_path / "shards" / entry.file).keys]
    rows = [int(str(key).rpartition("-")[2]) for key in keys]
    assert sorted(rows) == list(range(24)) != rows
    images, labels = read.batch(list(range(24)))
    assert torch.equal(images, pixels(rows))
    assert labels.tolist() == [row % 2 for row in rows]
    assert not (tmp_path / "shards" / ".unpacked").exists()
    again = shards_of(f"hf:{tmp_path / 'set'}", tmp_path / "shards")
    assert (again.images, again.reused) == (0, 4)


@pytest.mark.slow
def test_shards_of_other_splits_columns_and_cells(tmp_path):
    import pyarrow as pa

    folder = write_parquet(tmp_path / "set", label=pa.array(["b", "a"] * 3), images=12)
    made = shards_of(f"hf:{folder}", tmp_path / "one", "split=test", "label_column=none", "image_column=image")
    assert (made.manifest.count, made.manifest.class_names) == (6, ["set"])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": encoded(i) if i else None, "path": None} for i in range(6)]
    folder = write_parquet(tmp_path / "bare", image=pa.array(cells, kind), images=12)
    made = shards_of(f"hf:{folder}", tmp_path / "bare-shards")
    assert (made.manifest.count, [one.key for one in made.unreadable]) == (10, ["row 0", "row 6"])


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ("hf:{set}", ["split=dev"], r"^split=dev: .* has no such split"),
        ("hf:{set}", ["label_column=lable"], r"^label_column=lable: .* did you mean label"),
        ("hf:{set}", ["label=none"], r"^label=none: in=hf:.* does not take it; choose label_column="),
        ("hf:/no/where/data.root=a", [], r"^in=hf:/no/where/data.root=a: there is no such folder"),
        ("hf:{images}", [], r"^in=hf:.*; a folder of images is in=<folder>$"),
        ("hf:/no/where", [], r"^in=hf:/no/where: there is no such folder, and it is no name of the hub"),
        ("{set}", ["split=test"], r"^split=test: .* does not take it; it is for in=hf:<set>"),
    ],
)
def test_bad_input_of_shards_is_one_line(given, options, words, folder, tmp_path):
    (images := tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        shards_of(given.format(set=folder, images=images), tmp_path / "out", *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
