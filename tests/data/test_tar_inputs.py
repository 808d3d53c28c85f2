"""Tars as input of shard: names, doubles, class numbers, compressed tars, tars in tars; no record is lost unnamed."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pmf_lightning import UserError, compose
from pmf_lightning.data.images.listing import reasons
from pmf_lightning.data.shards.manifest import read_manifest
from pmf_lightning.data.shards.writing.class_numbers import by_name, by_number
from pmf_lightning.data.shards.writing.inputs import Inputs
from pmf_lightning.data.shards.writing.tar_files import UNPACKED, find_tars
from pmf_lightning.data.shards.writing.tar_records import TarTask, list_tar
from pmf_lightning.data.shards.writing.verify import verify
from pmf_lightning.shard import shard


def picture(level=90, kind="PNG"):
    stream = io.BytesIO()
    Image.new("L", (8, 8), level).save(stream, kind)
    return stream.getvalue()


def tar_of(members, mode="w"):
    """The bytes of a tar of (name, content); an int is the level of a picture."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in members:
            content = picture(content) if isinstance(content, int) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def listed(tmp_path, *members):
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    return list_tar(TarTask(tmp_path / "a.tar", tmp_path / "unpacked"), lambda: None)


@cache
def defaults():
    return compose(["size=8", "num_workers=1"], "shard")


def run(root, out, *options):
    cfg = OmegaConf.merge(defaults(), OmegaConf.from_dotlist(list(options)))
    return shard(OmegaConf.merge(cfg, {"in": str(root), "out": str(out)}))


def contents(out):
    """{class name: levels of its records}"""
    from pmf_lightning.data.shards.tar import read_index

    manifest, found = read_manifest(out), {}
    for entry in manifest.shards:
        index, content = read_index(out / entry.file), (out / entry.file).read_bytes()
        for start, size, label in zip(index.offsets, index.sizes, index.labels, strict=True):
            found.setdefault(manifest.class_names[label], []).append(content[start + size - 1])
    return {name: sorted(levels) for name, levels in found.items()}


# --- names ---


@pytest.mark.parametrize(
    "names",
    [
        ["_DSC0001", "IMG_1", "__x", "_"],
        ["a/1", "b/1", "./c/1", "x"],
        ["photo.v1", "photo.v2", "n01440764_1.b.c"],
        ["a b", "café", "文", "1"],
    ],
)
def test_every_name_is_a_record(tmp_path, names):
    members = [(f"{name}.{end}", data) for name in names for end, data in (("JPEG", 50), ("cls", b"1"))]
    found = listed(tmp_path, *members)
    assert found.keys == [name.removeprefix("./") for name in names]
    assert not found.broken + found.left_out


@pytest.mark.parametrize(
    "order",
    [
        ["a.png", "a.cls", "a.png", "a.cls"],
        ["a.png", "a.cls", "b.png", "b.cls", "a.png", "a.cls"],
        ["a.png", "a.png", "a.cls", "a.cls"],
        ["a.png", "b.png", "b.cls", "a.cls"],
        ["a.cls", "b.cls", "a.png", "b.png"],
        ["x/a.png", "x/a.cls", "y/a.png", "y/a.cls"],
    ],
)
def test_doubles_and_any_order_are_records(tmp_path, order):
    found = listed(tmp_path, *((name, b"3" if name.endswith("cls") else 1) for name in order))
    assert len(found.keys) == len(order) // 2
    assert not found.broken + found.left_out
    assert len({start for _, start, _ in found.places}) == len(order) // 2


def test_what_is_skipped_is_counted(tmp_path):
    found = listed(
        tmp_path,
        *(("1.png", 1), ("1.cls", b"0"), ("1.json", b"{}"), ("._1.png", b""), ("__MACOSX/1.png", b"")),
        *(("__meta__", b""), ("__info__/1.png", b""), ("README", b""), ("notes.txt", b"")),
        *(("alone.cls", b"1"), ("bare.png", 1), ("both.png", 1), ("both.jpg", 1), ("both.cls", b"1")),
    )
    assert found.keys == ["1"]
    assert {one.key for one in found.broken} == {"alone", "bare", "both"}
    assert reasons(found.left_out) == {
        "hidden": 2,
        "a name that WebDataset reserves (__name__)": 2,
        "another part of a record (.json)": 1,
        "not an image (no extension)": 1,
        "not an image (.txt)": 1,
    }


def test_links_in_tars_are_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE), ("3.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "x"
            tar.addfile(member)
    found = list_tar(TarTask(tmp_path / "a.tar", tmp_path), lambda: None)
    assert reasons(found.left_out) == {"a link inside the tar": 2, "neither a file nor a folder": 1}


# --- numbers ---


@pytest.mark.parametrize("label", [b"-1", b"1.5", b"cat", b"", b"1e3", b"9" * 30, "²".encode()])
def test_labels_that_are_no_numbers_are_listed(tmp_path, label):
    found = listed(tmp_path, ("1.png", 1), ("1.cls", b" 7\n"), ("2.png", 1), ("2.cls", label))
    assert [place[0] for place in found.places] == [7]
    assert "not an integer of 0 or more" in found.broken[0].reason


@pytest.mark.parametrize(
    ("numbers", "labels", "names"),
    [
        ([1443537, 1440764, 1443537], [1, 0, 1], ["1440764", "1443537"]),
        ([2007, 2020, 2010], [0, 2, 1], ["2007", "2010", "2020"]),
        ([100, 300, 200], [0, 2, 1], ["100", "200", "300"]),
        ([10**15, 0], [1, 0], ["0", str(10**15)]),
        ([2, 0], [2, 0], ["0", "1", "2"]),
        ([1, 1], [1, 1], ["0", "1"]),
    ],
)
def test_numbers_far_apart_are_few_classes(numbers, labels, names):
    found, called, said = by_number(np.array(numbers), ["k"] * len(numbers), None, None)
    assert (found.tolist(), called) == (labels, names)
    assert (said is not None) == (numbers != labels)


def test_given_numbers_of_classes_stay(tmp_path):
    labels = np.array([0, 999])
    assert by_number(labels, ["a", "b"], 1000, None)[0].tolist() == [0, 999]
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(1000))))
    assert by_number(labels, ["a", "b"], None, str(tmp_path / "names.txt"))[0].tolist() == [0, 999]
    assert by_number(np.array([2007, 2020]), ["a", "b"], 2, None)[1] == ["2007", "2020"]
    with pytest.raises(UserError, match=r"classes=5, but b has the label 2020; leave classes out"):
        by_number(np.array([2007, 2020]), ["a", "b"], 5, None)


# --- compressed ---


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        *(("0.tar.gz", gzip.compress), ("0.tgz", gzip.compress), ("0.tar", gzip.compress)),
        *(("0.tar.bz2", bz2.compress), ("0.TAR.XZ", lzma.compress), ("0.tar.gz", bytes)),
    ],
)
def test_compressed_tars_are_read(tmp_path, name, pack):
    (tmp_path / "in").mkdir()
    data = tar_of([(f"{i}.{end}", i * 9 if end == "png" else b"1") for i in range(3) for end in ("png", "cls")])
    (tmp_path / "in" / name).write_bytes(pack(data))
    made = run(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == {"1": [0, 9, 18]}
    assert made.unpacked == (pack is not bytes)
    assert not (tmp_path / "out" / UNPACKED).exists()
    assert run(tmp_path / "in", tmp_path / "out").reused == 1
    assert not verify(tmp_path / "out", made.manifest, 1, lambda done: None)


def test_a_damaged_compressed_tar_gives_what_it_can(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    data = gzip.compress(tar_of([("0.png", 9), ("0.cls", b"0"), ("1.png", noise), ("1.cls", b"0")]))
    (tmp_path / "0.tar.gz").write_bytes(data[: len(data) // 2])
    made = run(tmp_path / "0.tar.gz", tmp_path / "out", "max_unreadable=0.9")
    assert made.manifest.count == 1
    reason = (tmp_path / "out" / "unreadable.tsv").read_text()
    assert "cannot be read any further" in reason
    assert UNPACKED not in reason


def test_a_bad_image_of_a_compressed_tar_is_named_by_the_tar(tmp_path):
    (tmp_path / "0.tgz").write_bytes(
        gzip.compress(tar_of([("0.png", 9), ("0.cls", b"0"), ("1.png", b"x"), ("1.cls", b"0")]))
    )
    run(tmp_path / "0.tgz", tmp_path / "out", "max_unreadable=0.9")
    assert f"{tmp_path / '0.tgz'}\tshard-000000.tar" in (tmp_path / "out" / "unreadable.tsv").read_text()


def test_a_disk_too_small_to_unpack_is_named(tmp_path, monkeypatch):
    (tmp_path / "0.tgz").write_bytes(gzip.compress(tar_of([("0.png", bytes(50_000)), ("0.cls", b"0")])))
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 20_000))
    with pytest.raises(
        UserError, match=r"in=.*0\.tgz: the disk of .*out has no space to unpack it; set out to a larger"
    ):
        run(tmp_path / "0.tgz", tmp_path / "out")
    assert not (tmp_path / "out" / UNPACKED).exists()


def test_zstd_without_a_reader_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "0.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("pmf_lightning.data.shards.writing.tar_files.import_module", missing)
    with pytest.raises(UserError, match=r"compressed with zstd, .*unpack it: zstd -d"):
        run(tmp_path / "0.tar.zst", tmp_path / "out")


# --- classes by name ---


def test_the_tar_of_tars_is_read_in_place(tmp_path):
    inner = [(f"n{k:08d}.tar", tar_of([(f"n{k:08d}_{i}.JPEG", k + i) for i in range(2)])) for k in (20, 10)]
    (tmp_path / "all.tar").write_bytes(tar_of(inner))
    made = run(tmp_path / "all.tar", tmp_path / "out")
    assert contents(tmp_path / "out") == {"n00000010": [10, 11], "n00000020": [20, 21]}
    assert made.unpacked == 0
    (tmp_path / "all.tgz").write_bytes(gzip.compress(tar_of([(f"train/{name}", data) for name, data in inner])))
    run(tmp_path / "all.tgz", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_bad_tars_inside_a_tar_are_listed(tmp_path):
    good = tar_of([("1.png", 7)])
    found = listed(
        tmp_path,
        ("a.tar", good),
        ("b.tar", b"not a tar"),
        ("c.tar.gz", gzip.compress(good)),
        ("d.tar", tar_of([("e.tar", good)])),
    )
    assert [bare.inner for bare in found.bare] == ["a"]
    assert [one.key for one in found.broken] == ["b.tar"]
    assert sum(reasons(found.left_out).values()) == 2


def test_a_tar_cut_off_inside_a_tar_makes_no_class(tmp_path):
    whole = tar_of([("1.png", 7), ("2.png", 8)])
    second = whole.rindex(picture(8))
    (tmp_path / "train.tar").write_bytes(
        tar_of([("n01.tar", whole[: second + 9]), ("n02.tar", tar_of([("3.png", 9)]))])
    )
    run(tmp_path / "train.tar", tmp_path / "out", "max_unreadable=0.9")
    assert contents(tmp_path / "out") == {"n01": [7], "n02": [9]}
    assert "n01.tar" in (tmp_path / "out" / "unreadable.tsv").read_text()


def test_a_tar_for_every_class(tmp_path):
    (tmp_path / "in").mkdir()
    for level, name in enumerate(("9", "10", "8")):
        (tmp_path / "in" / f"{name}.tar").write_bytes(tar_of([(f"{i}.png", level * 10 + i) for i in range(2)]))
    (tmp_path / "in" / "README.md").touch()
    made = run(tmp_path / "in", tmp_path / "out").manifest
    assert made.class_names == ["8", "9", "10"]
    assert contents(tmp_path / "out") == {"8": [20, 21], "9": [0, 1], "10": [10, 11]}
    assert made.left_out == {"not a tar": 1}


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".TGZ"])
def test_names_of_tars_have_dots(ending):
    tars = [f"v1.0/set.{name}{ending}" for name in ("cat", "dog")]
    assert by_name(tars, ["", ""], ["1", "1"])[0] == ["v1.0/set.cat", "v1.0/set.dog"]
    assert by_name(tars[:1], [""], ["1"])[0] == ["v1.0/set.cat"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["cat/1", "dog/1", "cat/2"], ["cat", "dog", "cat"]),
        (["set/train/cat/1", "set/train/dog/deep/1"], ["cat", "dog"]),
        (["1", "2"], ["all", "all"]),
        (["cat/1", "2"], ["all", "all"]),
    ],
)
def test_folders_in_a_tar_are_classes(names, chosen):
    assert by_name(["all.tar"] * len(names), [""] * len(names), names) == (chosen, names)


def test_what_is_no_class_by_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no image with a label \(.cls\), and 00000, 00001, ... are not names"):
        by_name(["00000.tar", "00001.tar"], ["", ""], ["1", "2"])
    with pytest.raises(UserError, match=r"its folders train, val are splits, not classes"):
        by_name(["all.tar"] * 2, ["", ""], ["x/train/cat/1", "x/val/cat/1"])
    (tmp_path / "0.tar").write_bytes(tar_of([("1.png", 1), ("1.txt", b"a cat")]))
    with pytest.raises(UserError, match="no image with a label"):
        run(tmp_path / "0.tar", tmp_path / "out")


def test_folders_of_tars_name_what_is_no_tar(tmp_path):
    for name in ("a.tar", "b.tar.gz", ".c.tar", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "gone.tar").symlink_to("nowhere")
    found, left_out = find_tars(str(tmp_path))
    assert [tar.name for tar in found] == ["a.tar", "b.tar.gz"]
    assert reasons(left_out) == {"hidden": 1, "not a tar": 1, "a link whose target is missing": 1}


@pytest.mark.parametrize("name", ["a[1].tar", "a{1}.tar", "a{0..1}.tar", "a?.tar"])
def test_a_tar_whose_name_is_like_a_pattern_is_found(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "a1.tar").touch()
    assert find_tars(str(tmp_path / name))[0] == [tmp_path / name]


def test_plain_copies_keep_the_fingerprint(tmp_path):
    places = np.zeros(1, np.int64)
    here = Inputs(tmp_path, ["0.tgz"], places, places, places, ["k"], places, ["c"], [], unpacked={"0.tgz": "/tmp/x"})
    assert (
        here.fingerprint()
        == Inputs(Path("/b"), ["0.tgz"], places, places, places, ["k"], places, ["c"], []).fingerprint()
    )
    assert here.original("/tmp/x") == str(tmp_path)  # as of tables, whose copies have names of their own
    (tmp_path / "0.tgz").touch()
    assert here.original("/tmp/x") == str(tmp_path / "0.tgz")


# --- other labels than .cls ---


def img2dataset(count=6, **more):
    """The members of a tar of img2dataset: an image, its caption and a JSON object for each record."""
    for number in range(count):
        about = {"key": f"{number:09d}", "caption": f"picture {number}", "meta": {"kind": "ab"[number % 2]}, **more}
        yield f"{number:09d}.jpg", number
        yield f"{number:09d}.json", json.dumps(about).encode()
        yield f"{number:09d}.txt", f"picture {number}".encode()


def test_tars_of_img2dataset(tmp_path):
    """Their classes are none, or a key of the JSON object; what has no class is listed, and captions are refused."""
    root = tmp_path / "tars"
    root.mkdir()
    members = list(img2dataset())
    (root / "00000.tar").write_bytes(tar_of(members[:9]))
    (root / "laion.2.tar.gz").write_bytes(
        tar_of([*members[9:], ("bad.png", 9), ("v1.2.jpg", 8), ("v1.2.json", b"{")], "w:gz")
    )
    made = run(root, tmp_path / "kind", "label=json:meta.kind", "max_unreadable=0.5")
    assert (made.manifest.class_names, made.manifest.per_class) == (["a", "b"], [3, 3])
    assert sorted(one.key for one in made.unreadable) == ["bad", "v1.2"]
    assert {one.reason for one in made.unreadable} == {"no class by json:meta.kind"}
    assert reasons(made_left_out(root, tmp_path, "json:meta.kind")) == {"another part of a record (.txt)": 6}
    made = run(root, tmp_path / "none", "label=none")
    assert (made.manifest.class_names, made.manifest.per_class) == (["tars"], [8])
    assert run(root / "laion.2.tar.gz", tmp_path / "one", "label=none").manifest.class_names == ["laion.2"]
    for options, words in (
        (["label=json:kind"], r"^label=json:kind: no image has a class by the key kind; .*keys key, caption, meta$"),
        (["label=nested"], "^label=nested: it is for folders and zips; tars take auto, none or json:<key>$"),
        (["label=leaf"], "^label=leaf: set it to auto, none"),
        (["label=none", "classes=3"], r"^classes and class_names are for labels in .cls, not for label=none"),
        ([], r"no image with a label .*; label=none and label=json:<key> read others$"),
    ):
        with pytest.raises(UserError, match=words):
            run(root, tmp_path / "out", *options)


def made_left_out(root, tmp_path, label):
    tasks = [TarTask(tar, tmp_path / "unpacked", label) for tar in sorted(root.iterdir())]
    return [one for task in tasks for one in list_tar(task, lambda: None).left_out]


def test_captions_of_tars_are_no_classes(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(img2dataset(101)))
    with pytest.raises(UserError, match=r"^label=json:caption: 101 different values for 101 images are captions"):
        run(tmp_path / "a.tar", tmp_path / "out", "label=json:caption")


def test_a_zip_becomes_shards(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number in range(6):
            archive.writestr(f"set/{'cat' if number % 2 else 'dog'}/{number}.png", picture(number))
    made = run(tmp_path / "set.zip", tmp_path / "out")
    assert (made.manifest.class_names, made.manifest.per_class, made.unreadable) == (["cat", "dog"], [3, 3], [])
    assert contents(tmp_path / "out") == {"cat": [1, 3, 5], "dog": [0, 2, 4]}
