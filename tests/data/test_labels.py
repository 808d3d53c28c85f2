"""Zips of images; the classes of images by dataset.json, nested folders, a json beside each, or a file of labels."""

import io
import json
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image
from test_data import entry, noise

from pmf_lightning.data.images.class_folders import count_class_folders, image_tree
from pmf_lightning.data.images.files import ENCRYPTED, TWICE
from pmf_lightning.data.images.listing import reasons
from pmf_lightning.data.shards.writing.inputs import folder_inputs
from pmf_lightning.utils.errors import UserError


def png(seed):
    stream = io.BytesIO()
    Image.fromarray(noise(8, 8, seed=seed)).save(stream, "PNG")
    return stream.getvalue()


def put(root, names, **texts):
    """Write images, and texts whose "/" is spelled "__", to a folder, or to a zip if ``root`` ends in .zip."""
    files = {name: png(seed) for seed, name in enumerate(names)}
    files |= {name.replace("__", "/").replace("_json", ".json"): text.encode() for name, text in texts.items()}
    if root.suffix == ".zip":
        with zipfile.ZipFile(root, "w") as archive:
            for number, (name, content) in enumerate(files.items()):
                archive.writestr(name, content, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
        return str(root)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def classes(tree):
    return {name: tree.class_names[label] for name, label in zip(tree.names, tree.labels, strict=True)}


EDM = [f"{number // 3:05d}/img{number:08d}.png" for number in range(6)]


@pytest.mark.parametrize("kind", ["set", "set.zip"])
def test_labels_of_edms_dataset_tool(tmp_path, kind):
    pairs = [[name, 2 + number % 2] for number, name in enumerate(EDM[:5])]
    root = put(tmp_path / kind, EDM, dataset_json=json.dumps({"labels": [*pairs, ["00009/img00009000.png", 2]]}))
    tree = image_tree(root)
    assert tree.class_names == ["2", "3"]
    assert classes(tree) == {name: str(number) for name, number in pairs}
    found = reasons(tree.left_out)
    assert found["an image without a label in dataset.json"] == 1
    assert found["in dataset.json, but no image is there"] == 1
    assert count_class_folders(root) == 2
    none = put(tmp_path / f"none{kind}", EDM, dataset_json='{"labels": null}')
    assert image_tree(none).labels == [0] * 6
    assert "its dataset.json has no labels" in image_tree(none).summary()[1]
    assert count_class_folders(none) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"labels": [["00000/img00000000.png", -1]]}', "labels 00000/img00000000.png as -1, not by a class number"),
        ('{"labels": [["00000/img00000000.png", [0, 1]]]}', r"as \[0, 1\], not by a class number"),
        ('{"labels": [3]}', r"holds no list of \[name, class number\]"),
        ('{"labels": ', "cannot be read"),
        ('{"labels": [["other.png", 1]]}', "labels none of its 6 images"),
    ],
)
def test_labels_out_of_range_are_one_line(tmp_path, text, words):
    root = put(tmp_path / "set.zip", EDM, dataset_json=text)
    with pytest.raises(UserError, match=f"^data.root=.*set.zip: its dataset.json .*{words}") as refused:
        count_class_folders(root)
    assert "\n" not in str(refused.value)


def test_a_zip_is_read_as_the_folder_in_it(tmp_path, monkeypatch):
    names = ["cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/.hidden.png", "dog/notes.txt", "dog/3.png"]
    trees = {}
    for kind in ("set", "set.zip"):
        tree = image_tree(put(tmp_path / kind, names))
        trees[kind] = (tree.names, tree.labels, tree.class_names, reasons(tree.left_out))
        source = entry("folder", root=str(tmp_path / kind), resolution=8, cache_dir=str(tmp_path), held_out_fraction=0)
        rows = source.train()
        trees[kind] += (np.asarray(rows.images).tobytes(), rows.labels.tolist())
    assert trees["set"] == trees["set.zip"]
    before = source.fingerprint()
    (tmp_path / "set.zip").touch()
    assert entry("folder", root=str(tmp_path / "set.zip"), resolution=8, held_out_fraction=0).fingerprint() == before
    inputs = folder_inputs(tmp_path / "set.zip")
    assert [inputs.piece(row).read() for row in range(4)] == [png(seed) for seed in (0, 1, 2, 5)]
    assert inputs.keys == folder_inputs(tmp_path / "set").keys


@pytest.mark.parametrize(
    ("names", "inside", "found"),
    [
        (["faces/1.png", "faces/2.png"], "", ["faces"]),
        (["1.png", "2.png"], "", ["set"]),
        (["all/pets/cat/1.png", "all/pets/dog/1.png"], "", ["cat", "dog"]),
        (["afhq/train/cat/1.png", "afhq/val/cat/1.png", "afhq/train/dog/1.png"], "/afhq/train", ["cat", "dog"]),
        (["0/7.png", "100/100.png", "200/250.png"], "", ["set"]),
    ],
)
def test_folders_in_a_zip(tmp_path, names, inside, found):
    root = put(tmp_path / "set.zip", names)
    assert image_tree(root + inside).class_names == found
    if inside:
        with pytest.raises(UserError, match=f"folders train, val are splits .*: set data.root={root}{inside}$"):
            count_class_folders(root)


def test_a_zip_with_the_names_of_windows_is_read_as_the_folder_in_it(tmp_path):
    names = ["cat/1.png", "cat/deep/2.png", "dog/1.png"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for seed, name in enumerate(["cat/", *names]):
            archive.writestr(name.replace("/", "\\"), png(seed) if seed else b"")
    tree = image_tree(str(tmp_path / "set.zip"))
    assert (tree.names, tree.class_names, tree.left_out) == (names, ["cat", "dog"], [])
    assert [tree.files.read(name) for name in names] == [png(1), png(2), png(3)]


def test_damaged_zips_are_one_line(tmp_path):
    root = put(tmp_path / "set.zip", ["a/1.png", "b/2.png", "b/3.png"])
    content = bytearray((tmp_path / "set.zip").read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.zip").write_text("I am no zip")
    put(tmp_path / "empty.zip", [], notes_json="{}")
    for name, words in (
        ("cut", "it is damaged, or no zip"),
        ("text", "it is damaged, or no zip"),
        ("empty", r"holds no image \(left out: 1 not an image \(.json\): notes.json\)"),
        ("set.zip/c", "the zip holds nothing there"),
    ):
        with pytest.raises(UserError, match=rf"^data.root=.*{name}.*{words}") as refused:
            count_class_folders(str(tmp_path / (name if "/" in name else f"{name}.zip")))
        assert "\n" not in str(refused.value)
    content[content.index(png(2)[60:80]) + 3] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    source = entry("folder", root=str(tmp_path / "flipped.zip"), resolution=8, cache_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="1 of 3 images cannot be read and are skipped: b/3.png"):
        assert len(source.train()) == 2
    with pytest.raises(UserError, match=r"cannot read .*flipped.zip/b/3.png \(OSError: damaged in the zip"):
        entry(
            "folder", root=str(tmp_path / "flipped.zip"), resolution=8, cache_dir=str(tmp_path), unreadable="fail"
        ).train()
    assert count_class_folders(root) == 2


def test_members_that_cannot_be_read_are_named(tmp_path):
    root = tmp_path / "set.zip"
    with zipfile.ZipFile(root, "w") as archive:
        archive.writestr("1.png", png(0))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("1.png", png(0))
        archive.writestr("2.png", png(0))
    content = bytearray(root.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, of the last file
    root.write_bytes(content)
    tree = image_tree(str(root))
    assert tree.names == ["1.png"]
    assert reasons(tree.left_out) == {TWICE: 1, ENCRYPTED: 1}


# --- rules ---

NESTED = ["animals/cat/1.png", "animals/dog/2.png", "plants/3.png", "loose.png"]


def test_classes_by_rule(tmp_path):
    root = put(tmp_path / "set", NESTED)
    assert image_tree(root).class_names == ["animals", "plants"]
    tree = image_tree(root, label="nested")
    assert classes(tree) == {name: name.rpartition("/")[0] for name in NESTED[:3]}
    assert reasons(tree.left_out) == {"an image outside the class folders": 1}
    one = image_tree(root, label="none")
    assert (one.class_names, len(one.names)) == (["set"], 4)
    source = entry("folder", root=root, label="nested", resolution=8, cache_dir=str(tmp_path), held_out_fraction=0)
    assert source.classes == 3
    source.check()
    others = entry("folder", root=root, label="none", resolution=8, cache_dir=str(tmp_path), held_out_fraction=0)
    assert (others.classes, len(others.train())) == (1, 4)
    assert others.fingerprint() != source.fingerprint()
    with pytest.raises(UserError, match=r"^data.label=leaf: set it to auto, none, nested, json:<key> or file:<path>$"):
        count_class_folders(root, "leaf")


@pytest.mark.parametrize("kind", ["set", "set.zip"])
def test_classes_by_a_json_beside_each_image(tmp_path, kind):
    records = [{"caption": f"picture {i}", "meta": {"kind": "owl"}, "year": 2000 + i % 2, "tags": []} for i in range(5)]
    texts = {f"00000__{i:04d}_json": json.dumps(record) for i, record in enumerate(records)}
    root = put(tmp_path / kind, [f"00000/{i:04d}.png" for i in range(6)], **texts)
    tree = image_tree(root, label="json:year")
    assert (tree.class_names, tree.labels) == (["2000", "2001"], [0, 0, 0, 1, 1])
    assert reasons(tree.left_out)["an image without a label (year of its .json)"] == 1
    assert image_tree(root, label="json:meta.kind").class_names == ["owl"]
    with pytest.raises(
        UserError,
        match=r"^data.label=json:label: no image has a class by the key label; .*keys caption, meta, year, tags",
    ):
        image_tree(root, label="json:label")


def test_captions_are_no_classes(tmp_path):
    texts = {f"{i:04d}_json": json.dumps({"caption": f"picture {i}"}) for i in range(120)}
    root = tmp_path / "set.zip"
    with zipfile.ZipFile(root, "w") as archive:
        for i in range(120):
            archive.writestr(f"{i:04d}.png", b"not opened")
            archive.writestr(f"{i:04d}.json", texts[f"{i:04d}_json"])
    with pytest.raises(UserError, match="label=json:caption: 120 different values for 120 images are captions"):
        image_tree(str(root), label="json:caption")


VAL = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
LABELS = {
    "val.txt": "".join(f"{name} {label}\n" for name, label in zip(VAL[:3], (10, 2, 10), strict=True)),
    "tabs.tsv": "".join(f"{name}\t{label}\n" for name, label in zip(VAL[:3], (10, 2, 10), strict=True)),
    "mapping.json": json.dumps(dict(zip(VAL[:3], (10, 2, 10), strict=True))),
}


def test_classes_by_a_file_of_labels(tmp_path):
    root = put(tmp_path / "val", VAL)
    for name, text in LABELS.items():
        (tmp_path / name).write_text(text)
        tree = image_tree(root, label=f"file:{tmp_path / name}")
        assert (tree.class_names, classes(tree)) == (["2", "10"], dict(zip(VAL[:3], ("10", "2", "10"), strict=True)))
        assert reasons(tree.left_out) == {f"an image without a label in {tmp_path / name}": 1}
    kaggle = "ImageId,PredictionString\n" + "".join(
        f"{name[:-5]},n0000000{i % 2} 1 2 3 4 n00000009 4 5 6 7\n" for i, name in enumerate(VAL)
    )
    (tmp_path / "LOC_val_solution.csv").write_text(kaggle)
    tree = image_tree(root, label=f"file:{tmp_path / 'LOC_val_solution.csv'}")
    assert (tree.class_names, tree.labels) == (["n00000000", "n00000001"], [0, 0, 1, 1])


TWO = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


def labels_by(tmp_path, images, text, column=""):
    (tmp_path / "list.csv").write_text(text)
    return classes(image_tree(put(tmp_path / "set", images), label=f"file:{tmp_path / 'list.csv'}{column}"))


@pytest.mark.parametrize(
    ("prefix", "ending"), [("", ".png"), ("train/", ".png"), ("/home/me/", ".png"), ("train/", ""), ("./", ".png")]
)
def test_lines_belong_to_the_images_with_their_paths(tmp_path, prefix, ending):
    wanted = dict(zip(TWO, ("cat", "cat", "dog", "owl"), strict=True))
    text = "".join(f"{prefix}{name.removesuffix('.png')}{ending} {found}\n" for name, found in wanted.items())
    assert labels_by(tmp_path, TWO, text) == wanted


@pytest.mark.parametrize(
    ("images", "text", "found"),
    [
        (["a/0.png", "b/0.png"], "a/0.png cat\n", {"a/0.png": "cat"}),
        (["a/0.png", "b/0.png"], "train/a/0.png cat\n", {"a/0.png": "cat"}),
        (["a/0.png"], "set/a/0.png cat\nval/a/0.png dog\n", {"a/0.png": "cat"}),  # the folder itself is called set
        (["0.png", "x/a/1.png"], "train/0.png cat\ntrain/a/1.png dog\n", {"0.png": "cat", "x/a/1.png": "dog"}),
    ],
)
def test_a_line_belongs_to_the_image_with_the_longest_common_end(tmp_path, images, text, found):
    assert labels_by(tmp_path, images, text) == found


@pytest.mark.parametrize("text", ["x/0.png cat\ny/0.png dog\n", "0 cat\n0 dog\n", "a/0.png cat\na/0.png dog\n"])
def test_two_lines_with_different_classes_for_an_image_are_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"list.csv: a/0.png is cat by its line .*, and dog by its line .*; give each "):
        labels_by(tmp_path, TWO, text)
    assert labels_by(tmp_path, TWO, "x/0.png cat\ny/0.png cat\n") == {"a/0.png": "cat", "b/0.png": "cat"}


SIZES = "filename,width,height,{}\n" + "".join(f"{name},64,48,{name[0]}\n" for name in TWO)


def test_the_header_of_a_csv_says_which_column_is_the_class(tmp_path):
    wanted = {name: name[0] for name in TWO}
    assert labels_by(tmp_path, TWO, SIZES.format("class")) == wanted
    assert labels_by(tmp_path, TWO, SIZES.format("Class Name").replace(",", "\t")) == wanted
    assert labels_by(tmp_path, TWO, SIZES.format("species"), ":species") == wanted
    assert labels_by(tmp_path, TWO, "".join(f"{name},{name[0]},\n" for name in TWO)) == wanted  # an empty column
    for text, column, words in (
        (
            SIZES.format("species"),
            "",
            "the columns filename, width, height, species, and which is the class is unknown",
        ),
        (SIZES.format("label,class"), "", "the columns filename, width, height, label, class, and which"),
        ("".join(f"{name},64,48,{name[0]}\n" for name in TWO), "", "the columns a/0.png, 64, 48, a, and which"),
        (SIZES.format("species"), ":specie", "it has no column specie of classes; did you mean species"),
        ("filename,width,class\n", "", "no line below its header has a class"),
    ):
        with pytest.raises(UserError, match=f"^data.label=file:.*list.csv{column}: .*{words}"):
            labels_by(tmp_path, TWO, text, column)


def test_imagenets_own_labels_follow_its_order_of_classes(tmp_path):
    root, truth = put(tmp_path / "val", VAL), tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n361\n490\n171\n")
    by_number = classes(image_tree(root, label=f"file:{truth}"))
    assert by_number == dict(zip(VAL, ("490", "361", "490", "171"), strict=True))
    kinds = [("ILSVRC2012_ID", float), ("WNID", object)]
    rows = [(490, "n01751748"), (361, "n09193705"), (171, "n02105855")]
    scipy.io.savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, kinds)})
    by_name = classes(image_tree(root, label=f"file:{truth}"))
    assert by_name == dict(zip(VAL, ("n01751748", "n09193705", "n01751748", "n02105855"), strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"the labels cannot be read \(.*No such file"),
        ("", "it is empty"),
        ("1\n2\n", "2 classes without names of images, for 4 images; give one for each"),
        ("a.png 1\nb.png 2\n", "it names none of the 4 images, first 'a.png'"),
    ],
)
def test_bad_files_of_labels_are_one_line(tmp_path, text, words):
    root = put(tmp_path / "val", VAL)
    if text is not None:
        (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=f"^data.label=file:.*labels.txt: .*{words}") as refused:
        count_class_folders(root, f"file:{tmp_path / 'labels.txt'}")
    assert "\n" not in str(refused.value)


def test_a_folder_of_zips_names_them(tmp_path):
    put(tmp_path / "Faces.zip", ["1.png"])
    with pytest.raises(UserError, match=rf"no images and no folders: give the zip, data.root={tmp_path}/Faces.zip"):
        count_class_folders(str(tmp_path))
