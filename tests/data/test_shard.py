"""Shards: right pixels and labels, what is unreadable listed, the same bytes after kill -9, everything verified."""

import errno
import io
import json
import os
import shutil
import signal
import tarfile
import time
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import faults
import filelock
import forked
import numpy as np
import pytest
import torch
import webdataset
from common import normal
from omegaconf import OmegaConf
from PIL import Image

from pmf_lightning import UserError, compose
from pmf_lightning.data.shards.manifest import read_manifest
from pmf_lightning.data.shards.payloads import PAYLOADS, decode, encode
from pmf_lightning.data.shards.tar import read_index, write_shard
from pmf_lightning.data.shards.writing import make, pixels, progress
from pmf_lightning.data.shards.writing.inputs import LONGEST, SourceImage, folder_inputs, record_keys
from pmf_lightning.data.shards.writing.processes import in_processes
from pmf_lightning.data.shards.writing.verify import verify
from pmf_lightning.shard import main, shard
from pmf_lightning.utils.rng import permutation

SIZE, CLASSES = 24, ("ants", "bees", "cats", "dogs", "eels")
RED, BLUE = (250, 10, 10), (10, 10, 250)


def smooth(height, width, seed):
    """A picture that survives JPEG: a few colours, blended."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def adm(image):
    """ADM's rule, written out for a Pillow image: halve with boxes, bicubic, central square; uint8 [3, SIZE, SIZE]."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * SIZE:
        image = image.resize(tuple(side // 2 for side in image.size), Image.BOX)
    factor = SIZE / min(image.size)
    levels = np.asarray(image.resize(tuple(round(side * factor) for side in image.size), Image.BICUBIC))
    top, left = ((side - SIZE) // 2 for side in levels.shape[:2])
    return levels[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1)


def odd_ones(root):
    """The six kinds of trouble, in the first class; two of them hold no image."""
    picture = io.BytesIO()
    smooth(90, 70, 5).save(picture, "JPEG")
    (root / "truncated.jpg").write_bytes(picture.getvalue()[:-200])
    (root / "zero.jpg").touch()
    Image.new("CMYK", (40, 30), (200, 40, 0, 60)).save(root / "cmyk.jpg", quality=100)
    Image.linear_gradient("L").save(root / "grey.jpg", quality=95)
    Image.fromarray(deep()).save(root / "deep.png")
    halves = Image.new("RGB", (SIZE, SIZE), RED)
    halves.paste(BLUE, (SIZE // 2, 0, SIZE, SIZE))
    exif = halves.getexif()
    exif[0x0112] = 6  # "turn me by a quarter"
    halves.save(root / "turned.jpg", exif=exif, quality=100, subsampling=0)


def deep():
    return (np.arange(SIZE * SIZE, dtype=np.uint16) * 113).reshape(SIZE, SIZE)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """2,000 files: 1,994 JPEGs of sizes from 10 x 10 to 89 x 79, and the odd ones."""
    root = tmp_path_factory.mktemp("gallery") / "images"
    for name in CLASSES:
        (root / name / "more").mkdir(parents=True)
    odd_ones(root / CLASSES[0])
    for i in range(1994):
        place = root / CLASSES[i % 5] / ("more" if i % 7 == 0 else "") / f"photo {i:04d}.v1.JPEG"
        smooth(10 + i % 70, 10 + i % 80, i).save(place, quality=75 + i % 20)
    return root


@pytest.fixture
def few(tmp_path):
    """23 images of two classes and no trouble."""
    for i in range(23):
        place = tmp_path / "few" / CLASSES[i % 2] / f"{i:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        smooth(30 + i, 50, i).save(place)
    return tmp_path / "few"


@cache
def defaults():
    return compose([f"size={SIZE}", "num_workers=2", "records_per_shard=8"], "shard")


def run(root, out, *options):
    cfg = OmegaConf.merge(defaults(), OmegaConf.from_dotlist(list(options)))
    return shard(OmegaConf.merge(cfg, {"in": str(root), "out": str(out)}))


def checked_run(root, out, *options):
    """Run as the command line does, whose options are checked first."""
    compose([f"size={SIZE}", *options], "shard")
    return run(root, out, *options)


def files_of(folder):
    """Everything that a reader sees, and the notes, to the byte."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def records_of(folder):
    """{key: (payload as an array, label)} read by place, through the indexes."""
    manifest, found = read_manifest(folder), {}
    for entry in manifest.shards:
        content, index = (folder / entry.file).read_bytes(), read_index(folder / entry.file)
        for key, start, size, label in zip(index.keys, index.offsets, index.sizes, index.labels, strict=True):
            found[str(key)] = (decode(content[start : start + size], manifest.payload, manifest.channels), int(label))
    assert len(found) == manifest.count, "no key twice"
    return found


@pytest.fixture(scope="module")
def made(gallery, tmp_path_factory):
    """The gallery in shards of at most 50 records, made without interruption."""
    out = tmp_path_factory.mktemp("made") / "shards"
    return out, run(gallery, out, "records_per_shard=50")


@pytest.mark.slow
def test_two_thousand_images_give_the_right_pixels(gallery, made):
    out, summary = made
    found = records_of(out)
    assert len(found) == summary.manifest.count == 1998
    assert summary.manifest.per_class == [399 + 6 - 2, 399, 399, 399, 398]
    assert summary.manifest.class_names == list(CLASSES)
    assert summary.manifest.skipped == 2
    for label, name in enumerate(CLASSES):
        for path in (gallery / name).rglob("*.JPEG"):
            key = str(path.relative_to(gallery).with_suffix("")).replace(".", "_")
            image, given = found[key]
            assert given == label
            with Image.open(path) as original:
                assert np.array_equal(image, adm(original)), key


@pytest.mark.slow
def test_the_odd_ones_follow_the_rule(made):
    out, summary = made
    found = {key.removeprefix("ants/"): image for key, (image, _) in records_of(out).items() if "photo" not in key}
    assert found.keys() == {"cmyk", "grey", "deep", "turned"}
    colour = np.array([(255 - level) * (255 - 60) / 255 for level in (200, 40, 0)])
    assert np.abs(found["cmyk"].astype(float) - colour[:, None, None]).max() <= 3
    assert (found["grey"] == found["grey"][:1]).all()
    assert found["grey"][0].mean(1).round().tolist() == sorted(found["grey"][0].mean(1).round().tolist())
    assert np.ptp(found["grey"]) > 200
    assert (found["deep"] == (deep() >> 8)[None]).all()
    sides = found["turned"][:, 2 : SIZE // 2 - 2], found["turned"][:, SIZE // 2 + 2 :]
    for side, colour in zip(sides, (RED, BLUE), strict=True):  # above and below: turned by a quarter
        assert np.abs(side.astype(int) - np.array(colour)[:, None, None]).max() <= 6
    lines = [line.split("\t") for line in (out / "unreadable.tsv").read_text().splitlines()]
    assert lines[0] == ["key", "reason", "file", "shard"]
    reasons = {line[0]: line[1] for line in lines[1:]}
    assert reasons.keys() == {"ants/truncated", "ants/zero"}
    assert "truncated" in reasons["ants/truncated"]
    assert "empty" in reasons["ants/zero"]
    assert [one.key for one in summary.unreadable] == [line[0] for line in lines[1:]]
    for line in lines[1:]:
        assert Path(line[2]).is_file()
        assert next(entry.count for entry in summary.manifest.shards if entry.file == line[3]) == 49


def test_each_shard_is_a_fair_sample_in_a_fixed_order(gallery, made):
    out, summary = made
    inputs = folder_inputs(gallery)
    order = permutation("shards", "order", count=2000).tolist()
    missing = {one.key for one in summary.unreadable}
    expected = [inputs.keys[row] for row in order if inputs.keys[row] not in missing]
    keys = [str(key) for entry in summary.manifest.shards for key in read_index(out / entry.file).keys]
    assert keys == expected
    assert len(summary.manifest.shards) == 40
    for entry in summary.manifest.shards:
        assert np.bincount(read_index(out / entry.file).labels, minlength=5).min() >= 2


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["all processes", "the main one"])
def test_killed_half_way_and_run_again_gives_the_same_bytes(gallery, made, tmp_path, whom):
    out = tmp_path / "shards"
    arguments = [f"in={gallery}", f"out={out}", f"size={SIZE}", "num_workers=2", "records_per_shard=50"]
    child = forked.FORKS.Process(target=faults.shard_killed_in, args=("shard-000010.tar", whom, arguments))
    child.start()
    assert forked.finish(child) == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    assert 8 <= len(finished) <= 12
    assert not (out / "manifest.json").exists()
    for name in finished:
        assert (out / name).read_bytes() == (made[0] / name).read_bytes(), "visible, so whole"
    if whom == "all processes":
        assert list(out.glob(".shard-*.partial")), "something was half-written"
    again = run(gallery, out, "records_per_shard=50")
    assert 8 <= again.reused <= len(finished) + 2
    assert again.manifest == made[1].manifest
    assert files_of(out) == files_of(made[0])
    kept = sum((out / name).stat().st_mtime_ns == written for name, written in finished.items())
    assert kept >= len(finished) - 2  # a tar without its note is made again
    assert _nobody_left(child.pid)


def _nobody_left(group, seconds=300):
    """Tell whether all processes of a group end, workers that only wait for work too."""
    for _ in range(int(seconds / 0.05)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_workers_and_runs_change_no_byte(few, tmp_path):
    first = run(few, tmp_path / "a", "num_workers=1")
    run(few, tmp_path / "b", "num_workers=3")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("shard-*")}
    again = run(few, tmp_path / "a", "num_workers=1")
    assert again.reused == 3
    assert again.images == 0
    assert again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (tmp_path / "a" / "shard-000001.tar").unlink()
    (tmp_path / "a" / "shard-000002.index.npz").write_bytes(b"damaged")
    assert run(few, tmp_path / "a").images == 15
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_plain_webdataset_reads_the_tars(few, tmp_path, payload):
    made = run(few, tmp_path / "out", f"payload={payload}", "quality=95").manifest
    urls = [str(tmp_path / "out" / entry.file) for entry in made.shards]
    decoder = () if payload == "npy" else ("rgb8",)
    opened = webdataset.WebDataset(urls, shardshuffle=False).decode(*decoder).to_tuple("__key__", payload, "cls")
    seen = {key: (image if payload == "npy" else image.transpose(2, 0, 1), label) for key, image, label in opened}
    assert len(seen) == 23
    errors = []
    for key, (image, label) in seen.items():
        with Image.open(few / f"{key}.jpg") as original:
            errors.append(np.abs(image.astype(int) - adm(original)).mean())
        assert CLASSES[label] == key.split("/")[0]
        assert np.array_equal(image, records_of(tmp_path / "out")[key][0]) if len(errors) == 1 else True
    assert max(errors) == 0 if PAYLOADS[payload].lossless else 0 < max(errors) < 2


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("channels", [1, 3])
def test_payloads_bring_images_back(payload, channels):
    image = np.asarray(smooth(20, 31, 3)).transpose(2, 0, 1)[:channels].copy()
    found = decode(encode(image, payload, 95), payload, channels)
    assert found.dtype == np.uint8
    assert found.shape == (channels, 20, 31)
    assert found.flags.writeable
    difference = np.abs(found.astype(int) - image)
    assert difference.max() == 0 if PAYLOADS[payload].lossless else 0 < difference.max() < 12
    coarse = np.abs(decode(encode(image, "jpg", 30), "jpg", channels).astype(int) - image)
    assert coarse.mean() > difference.mean(), "quality is heard"
    if (payload, channels) != ("webp", 1):  # which knows no grey
        with pytest.raises(ValueError, match=r"channels|neither an image nor latents"):
            decode(encode(image, payload, 95), payload, 4 - channels)
    for cut in (b"", encode(image, payload, 95)[:-30], b"nonsense" * 50):
        with pytest.raises(ValueError, match=r"not a complete image|not an npy array|in [\d,]+ bytes"):
            decode(cut, payload, channels)


def test_jpg_keeps_colour_as_fine_as_grey():
    stripes = np.zeros((3, 16, 16), np.uint8)
    stripes[0, :, ::2] = 255
    with Image.open(io.BytesIO(encode(stripes, "jpg", 95))) as image:
        assert image.layer[0][1:3] == image.layer[1][1:3] == (1, 1)


def test_latents_are_arrays_of_floats():
    latents = normal("payload", shape=(2, 4, 3, 3), dtype=torch.float32).numpy()
    assert np.array_equal(decode(encode(latents, "npy"), "npy", 4), latents)
    for wrong in (latents.astype(np.float64), latents[:1], latents[0]):
        stream = io.BytesIO()
        np.save(stream, wrong)
        with pytest.raises(ValueError, match="neither an image nor latents of 4 channels"):
            decode(stream.getvalue(), "npy", 4)


def test_keys_fit_webdataset_and_differ():
    names = ["a/x.1", "a/x_1", "a/x_1-2", "a/x.1", "b/\udcff\n", "c/" + "ö" * 99, "c/" + "ö" * 98 + "o", "d/e"]
    keys = record_keys(names)
    assert keys[:4] == ["a/x_1", "a/x_1-2", "a/x_1-2-2", "a/x_1-3"]
    assert keys[4] == "b/__"
    assert keys[-1] == "d/e"
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert len(key.encode()) <= LONGEST
        assert "." not in key


def test_a_shard_without_records_can_be_read(tmp_path):
    entry = write_shard(tmp_path / "shard-000000.tar", [])
    assert entry.count == 0
    assert len(read_index(tmp_path / "shard-000000.tar").keys) == 0
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert tar.getmembers() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["size=16"], ["size=24, now 16"]),
        (["payload=png"], ["payload=npy, now png"]),
        (["channels=1"], ["channels=3, now 1"]),
        (["records_per_shard=9"], ["records_per_shard=8, now 9"]),
        ([], ["images=23, now 24", "inputs="]),
    ],
    ids=["size", "payload", "channels", "records", "inputs"],
)
def test_another_recipe_is_refused_by_name(few, tmp_path, change, words):
    run(few, tmp_path / "out")
    before = files_of(tmp_path / "out")
    if not change:
        shutil.copy(few / "ants" / "00.jpg", few / "ants" / "new.jpg")
    with pytest.raises(UserError, match=r"out=.*made with other options .*set another out") as refused:
        run(few, tmp_path / "out", *change)
    for word in words:
        assert word in str(refused.value)
    assert files_of(tmp_path / "out") == before


def test_without_a_finished_shard_other_options_are_taken(few, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "free_disk", lambda folder: 1000)
    with pytest.raises(UserError, match="set out to a larger disk, or another payload"):
        run(few, tmp_path / "out")
    monkeypatch.undo()
    assert run(few, tmp_path / "out", "payload=jpg").manifest.payload == "jpg"


def test_two_at_once_and_foreign_folders_are_refused(few, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    out = tmp_path / "out"
    out.mkdir()
    with filelock.FileLock(out / ".lock"), pytest.raises(UserError, match="is making shards there; wait for it"):
        run(few, out)
    (out / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"it contains other files \(thesis.txt\); set another out"):
        run(few, out)


def test_too_much_unreadable_is_an_error_that_loses_nothing(few, tmp_path):
    out = tmp_path / "out"
    for name in ("05.jpg", "07.jpg"):
        (few / "bees" / name).write_text("I am not a picture")
    with pytest.raises(
        UserError, match=r"of 23 inputs cannot be read, more than max_unreadable=0.01: .*unreadable.tsv"
    ):
        run(few, out)
    assert "bees/0" in (out / "unreadable.tsv").read_text()
    assert not (out / "manifest.json").exists()
    made = run(few, out, "max_unreadable=0.1")
    assert made.reused > 0
    assert (out / "unreadable.tsv").read_text().count("no image of a known format") == 2
    assert made.manifest.count == 21
    run(few, tmp_path / "straight", "max_unreadable=0.1")
    assert files_of(out) == files_of(tmp_path / "straight")


def test_a_failing_disk_is_no_fault_of_the_images(few, tmp_path, monkeypatch):
    read = SourceImage.read

    def failing(piece):
        if piece.key == "bees/05":
            raise OSError(errno.EIO, "Input/output error")
        return read(piece)

    monkeypatch.setattr(SourceImage, "read", failing)
    with pytest.raises(UserError, match=r"cannot read .*bees/05.jpg \(Input/output error\), and it may not be damaged"):
        run(few, tmp_path / "out", "max_unreadable=0.5")
    monkeypatch.undo()
    assert run(few, tmp_path / "out", "max_unreadable=0.5").manifest.count == 23


def test_a_full_disk_is_named_before_and_during_work(few, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "free_disk", lambda _: 30_000)
    with pytest.raises(UserError, match=r"the shards need about 82\.4 kB more and 30\.0 kB are free; set out"):
        run(few, tmp_path / "out")
    with pytest.raises(UserError, match="the shards need about"):
        run(few, tmp_path / "webp", "payload=webp")
    monkeypatch.undo()
    write = pixels.write_shard

    def full(path, records):
        if path.name == "shard-000001.tar":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, records)

    monkeypatch.setattr(pixels, "write_shard", full)
    with pytest.raises(
        UserError, match=r"out=.*cannot be written \(No space left on device\); free some space and repeat the"
    ):
        run(few, tmp_path / "out")
    monkeypatch.undo()
    run(few, tmp_path / "out")
    run(few, tmp_path / "straight")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")


def test_the_announced_size_is_about_right(few, tmp_path, capsys):
    for payload in PAYLOADS:
        made = run(few, tmp_path / payload, f"payload={payload}", "records_per_shard=23").manifest
        told = capsys.readouterr().out.split("about ")[1].split(" kB for 23 images in 1 shard")[0]
        assert float(told) * 1000 == pytest.approx(made.shards[0].bytes, rel=0.15, abs=tarfile.RECORDSIZE)


def _slowly(task, tick):
    for _ in range(task):
        tick()
        time.sleep(0.01)
    return task


def _dying(task, tick):
    os._exit(9)


def test_ctrl_c_and_dead_workers_end_all(few, tmp_path):
    def interrupt(done):
        if done > 3:
            raise KeyboardInterrupt

    endless = [10**9] * 8
    with pytest.raises(KeyboardInterrupt), closing(in_processes(_slowly, endless, 2, interrupt)) as results:
        list(results)
    with pytest.raises(UserError, match="run again with a smaller num_workers"):
        list(in_processes(_dying, [1, 2], 2, lambda done: None))
    assert sorted(in_processes(_slowly, [3, 1, 2], 2, lambda done: None)) == [1, 2, 3]


# --- tars as input ---


@pytest.fixture
def tars(few, tmp_path):
    """The few as public shards: two tars of 12 and 11 records, with a member that is no image."""
    folder = tmp_path / "tars"
    folder.mkdir()
    paths = sorted(few.rglob("*.jpg"), key=lambda path: path.name)
    for number, part in enumerate((paths[:12], paths[12:])):
        with webdataset.TarWriter(str(folder / f"train-{number:03d}.tar")) as writer:
            for path in part:
                label = CLASSES.index(path.parent.name)
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label, "json": {"a": 1}})
    return folder


@pytest.mark.parametrize("form", ["{}", "{}/train-{{000..001}}.tar", "{}/train-*.tar"])
def test_public_tars_give_the_same_records(few, tars, tmp_path, form):
    made = run(form.format(tars), tmp_path / "out", "classes=3").manifest
    assert made.class_names == ["0", "1", "2"]
    assert made.per_class == [12, 11, 0]
    found = records_of(tmp_path / "out")
    for path in few.rglob("*.jpg"):
        image, label = found[path.stem]
        with Image.open(path) as original:
            assert np.array_equal(image, adm(original))
        assert CLASSES[label] == path.parent.name


def test_names_of_classes_and_where_the_tars_lie(tars, tmp_path):
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    made = run(tars / "train-000.tar", tmp_path / "a", f"class_names={tmp_path / 'names.txt'}").manifest
    assert made.class_names == ["ant", "bee"]
    run(tars, tmp_path / "b")
    tars.rename(tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path / "b").reused == 3
    apart = tmp_path / "apart"
    apart.mkdir()
    (tmp_path / "moved" / "train-001.tar").rename(apart / "train-001.tar")
    run(f"{tmp_path}/{{moved/train-000,apart/train-001}}.tar", tmp_path / "c")
    assert records_of(tmp_path / "c").keys() == records_of(tmp_path / "b").keys()


def test_bad_records_of_tars_are_listed(tars, tmp_path):
    with tarfile.open(tars / "train-000.tar", "a") as tar:
        for name, content in (
            ("word.jpg", b"x"),
            ("word.cls", b"ant"),
            ("alone.cls", b"1"),
            ("broken.jpg", b"I am not a picture"),
            ("broken.cls", b"1"),
            ("00.jpg", b""),
            ("00.cls", b"1"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole = (tars / "train-001.tar").read_bytes()
    (tars / "train-001.tar").write_bytes(whole[: len(whole) // 2])
    made = run(tars, tmp_path / "out", "max_unreadable=0.9")
    reasons = {one.key: one.reason for one in made.unreadable}
    assert "its label is b'ant', not an integer" in reasons["word"]
    assert "it holds cls: one image" in reasons["alone"]
    assert reasons["broken"] == "no image of a known format"
    assert "the file is empty" in reasons["00-2"], "the second of that key"
    assert "cannot be read any further" in reasons["train-001"]
    assert 12 < made.manifest.count < 20
    assert made.manifest.skipped == 5 + 2
    assert list(made.manifest.left_out) == ["another part of a record (.json)"]


def test_tars_cut_between_members_are_noticed(tars, tmp_path):
    with tarfile.open(tars / "train-001.tar") as tar:
        end = tar.getmembers()[5].offset  # the second record's last member ends here
    whole = (tars / "train-001.tar").read_bytes()
    (tars / "train-001.tar").write_bytes(whole[:end])
    made = run(tars, tmp_path / "out", "max_unreadable=0.9")
    assert [one.reason for one in made.unreadable] == [
        "the tar cannot be read any further (ReadError: no end marker: it is truncated)"
    ]


# --- verify ---


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _other_record(out):
    _flip(out / "shard-000001.tar", int(read_index(out / "shard-000001.tar").offsets[2]) + 200)


def _no_array(out):
    _flip(out / "shard-000001.tar", int(read_index(out / "shard-000001.tar").offsets[2]))


def _shorter(out):
    with (out / "shard-000001.tar").open("r+b") as file:
        file.truncate(9000)


def _label(out):
    with tarfile.open(out / "shard-000001.tar") as tar:
        place = tar.getmembers()[1].offset_data
    _flip(out / "shard-000001.tar", place)


def _other_index(out):
    shutil.copy(out / "shard-000000.index.npz", out / "shard-000001.index.npz")


def _short_index(out):
    path = out / "shard-000001.index.npz"
    index = read_index(out / "shard-000001.tar")
    columns = ("offsets", "sizes", "labels", "keys")
    np.savez(path, **{name: getattr(index, name)[:-2] for name in columns})


def _counts(out):
    text = json.loads((out / "manifest.json").read_text())
    text["per_class"] = [13, 10]
    (out / "manifest.json").write_text(json.dumps(text))


DAMAGE = {
    "a pixel": (_other_record, ["shard-000001.tar", "digest differs from the manifest"]),
    "a record": (_no_array, ["shard-000001.tar", "not an npy array", "digest"]),
    "cut off": (_shorter, ["shard-000001.tar", "9,000 bytes instead of"]),
    "a label": (_label, ["shard-000001.tar", "differs from the index"]),
    "missing": (lambda out: (out / "shard-000001.tar").unlink(), ["shard-000001.tar: missing"]),
    "index": (lambda out: (out / "shard-000001.index.npz").write_bytes(b"x"), ["shard-000001.index.npz: cannot be"]),
    "foreign index": (_other_index, ["shard-000001.tar: ", "differs from the index"]),
    "short index": (_short_index, ["shard-000001.tar: 8 records, 6 in the index, 8 in the manifest"]),
    "counts": (_counts, ["manifest.json: its counts per class"]),
    "stray": (lambda out: (out / "other.tar").touch(), ["other.tar: it is not in a manifest; remove it"]),
    "list": (
        lambda out: (out / "unreadable.tsv").write_text("a\nb\n"),
        ["unreadable.tsv: 1 lines for 0 inputs without a record"],
    ),
}


def problems_of(out):
    return verify(out, read_manifest(out), 1, lambda done: None)


def test_verify_by_command(few, tmp_path, call):
    out = tmp_path / "out"
    run(few, out)
    status, output, errors = call(f"out={out}", "verify=true", "num_workers=2")
    assert status == 0, errors
    assert "no problems: 23 records of 2 classes in 3 shards" in output
    _shorter(out)
    status, output, errors = call(f"out={out}", "verify=true", "num_workers=2")
    assert status == 1
    assert "no problems" not in output
    assert "shard-000001.tar: 9,000 bytes instead of" in errors
    assert f"error: 1 problem in {out}; they were made from in={few}" in errors


@pytest.fixture
def call(call_command):
    return partial(call_command, main)


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_what_is_wrong_and_the_remedy_mends_it(few, tmp_path, kind):
    out = tmp_path / "out"
    run(few, out)
    before = files_of(out)
    assert problems_of(out) == []
    damage, words = DAMAGE[kind]
    damage(out)
    errors = "\n".join(problems_of(out))
    for word in words:
        assert word in errors
    for name in ("shard-000001.tar", "other.tar"):
        if f"{name}: " in errors and kind != "index":
            (out / name).unlink(missing_ok=True)
    if kind == "index":
        (out / "shard-000001.index.npz").unlink()
    run(few, out)
    assert files_of(out) == before


# --- the command ---


def test_the_command_says_what_it_made(few, tmp_path, call):
    status, output, errors = call(f"in={few}", "out=a {b},c", f"size={SIZE}", "num_workers=2")
    assert status == 0, errors
    assert "23 images of 2 classes (ants, bees) in" in output
    assert "a {b},c: 23 records of 2 classes in 1 shard, " in output
    assert "images in" in output
    assert (tmp_path / "a {b},c" / "manifest.json").is_file()
    assert "sharding" in errors, "the progress bar"
    status, output, _ = call("--help")
    assert status == 0
    assert "python -m pmf_lightning.shard out=/data/shards verify=true" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["size=24", "out=out"], ["in is not set"]),
        (["size=24", "in=few"], ["out is not set"]),
        (["out=out", "in=few"], ["size is not set"]),
        (["verify=true"], ["out is not set"]),
        (["out=out", "verify=true"], ["out=out: there is no such folder"]),
        (["out=out", "verify=true", "num_workers=-1"], ["num_workers=-1: set it to an integer, 1 or more"]),
        (["in=a.tar", "in=b.tar", "out=out", "size=24"], ["in is given more than once: put quotes"]),
        (["in=x-{000..001}.tar", "out=out", "size=24"], ["x-000.tar is missing (2 tars in all)"]),
        (["in=few", "out=out", "size=24", "payloads=npy"], ["payloads"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(few, call, arguments, words):
    status, output, errors = call(*arguments)
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in errors
    assert "sharding" not in output + errors, "work had begun"
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("source", "out", "options", "words"),
    [
        ("nowhere", "out", [], ["in=nowhere: no such file or folder"]),
        ("both", "out", [], ["in=both: it holds tars and folders", "'both/*.tar'"]),
        ("flat", "out", [], ["in=flat holds no images and no folders", "those of each class into flat/<class>/"]),
        ("hollow", "out", [], ["hollow/empty holds no image"]),
        ("splits", "out", [], ["in=splits: its folders test, train are splits", "set in=splits/train"]),
        ("few", "few/shards", [], ["out=few/shards: that is inside in=few"]),
        ("few", "/proc/nowhere", [], ["out=/proc/nowhere", "cannot be written"]),
        ("few", "file.txt", [], ["out=file.txt: it is not a folder"]),
        ("x-{000..001.tar", "out", [], ["in=x-{000..001.tar"]),
        ("x*.tar", "out", [], ["in=x*.tar: no such file"]),
        ("packed.tar.gz", "out", [], ["packed.tar.gz", "no image with a label", "empty file"]),
        ("file.txt", "out", [], ["file.txt is not a tar; unpack it"]),
        ("few/ants/00.jpg", "out", [], ["few/ants/00.jpg is one image; give the folder"]),
        ("text.tar", "out", [], ["text.tar", "no image with a label", "cannot be read any further"]),
        ("tars", "out", ["classes=1"], ["classes=1, but 01 has the label 1; raise classes"]),
        ("tars", "out", ["class_names=nowhere.txt"], ["class_names=nowhere.txt: cannot be read"]),
        ("tars", "out", ["class_names=one.txt", "classes=2"], ["one.txt: 1 names for 2 classes"]),
        ("few", "out", ["classes=2"], ["leave both out"]),
        ("few", "out", ["size=0"], ["size=0"]),
        ("few", "out", ["size=big"], ["size=big"]),
        ("few", "out", ["size=2.5"], ["size=2.5"]),
        ("few", "out", ["payload=gif"], ["payload=gif", "webp"]),
        ("few", "out", ["kind=latent"], ["kind=latent", "latents"]),
        ("few", "out", ["payload=jpg", "quality=101"], ["quality=101"]),
        ("few", "out", ["channels=2"], ["channels=2"]),
        ("few", "out", ["records_per_shard=0"], ["records_per_shard=0"]),
        ("few", "out", ["num_workers=0"], ["num_workers=0"]),
        ("few", "out", ["max_unreadable=2"], ["max_unreadable=2"]),
        ("few", "out", ["max_unreadable=some"], ["max_unreadable=some"]),
        ("few", "out", ["kind=latents", "payload=jpg"], ["latents need payload=npy channels=3"]),
        ("few", "out", ["kind=latents", "device=toaster"], ["device=toaster"]),
        ("few", "out", ["kind=latents", "decoder.weights=nowhere"], ["decoder.weights=nowhere"]),
        ("few", "out", ["kind=latents", "size=20", "decoder.weights=nowhere"], ["size=20", "multiple of 8"]),
    ],
)
def test_bad_input_is_named(few, tars, tmp_path, monkeypatch, capfd, source, out, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").touch()
    for name in ("test", "train"):
        (tmp_path / "splits" / name).mkdir(parents=True)
    (tmp_path / "hollow" / "empty").mkdir(parents=True)
    (tmp_path / "both" / "ants").mkdir(parents=True)
    (tmp_path / "both" / "a.tar").touch()
    (tmp_path / "text.tar").write_text("I am no tar")
    (tmp_path / "one.txt").write_text("ant\n")
    for name in ("file.txt", "packed.tar.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as refused:
        checked_run(source, out, *options)
    for word in words:
        assert word in str(refused.value)
    assert "sharding" not in "".join(capfd.readouterr()), "work had begun"
    assert not list(tmp_path.glob("**/shard-*"))


# --- latents ---


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of a tiny random SD-VAE, and the network itself."""
    from diffusers import AutoencoderKL

    sizes = {"latent_channels": 4, "block_out_channels": [8] * 4, "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKL(**sizes, **blocks).eval()
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            weight.copy_(0.2 * normal("shards", name, shape=tuple(weight.shape)) + name.endswith("norm.weight"))
    folder = tmp_path_factory.mktemp("weights") / "vae"
    vae.save_pretrained(folder)
    return folder, vae


def test_latents_are_those_of_the_crops(few, autoencoder, tmp_path):
    folder, vae = autoencoder
    (few / "ants" / "zero.png").touch()
    options = ["kind=latents", f"decoder.weights={folder}", "batch=3", "max_unreadable=0.1"]
    made = run(few, tmp_path / "out", *options).manifest
    assert (made.kind, made.resolution, made.channels, made.payload) == ("latents", 3, 4, "npy")
    assert made.autoencoder.startswith("SD-VAE ")
    assert made.count == 23
    assert made.skipped == 1
    for key, (latents, label) in records_of(tmp_path / "out").items():
        with Image.open(few / f"{key}.jpg") as original:
            image = torch.from_numpy(adm(original).copy())[None].float() / 127.5 - 1
        with torch.no_grad():
            posterior = vae.encode(image).latent_dist
        assert latents.shape == (2, 4, 3, 3)
        assert np.abs(latents[0] - posterior.mean[0].numpy()).max() < 1e-4
        assert np.abs(latents[1] - posterior.std[0].numpy()).max() < 1e-4
        assert CLASSES[label] == key.split("/")[0]
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "shard-000001.tar").unlink()
    assert run(few, tmp_path / "out", *options).reused == 2
    assert files_of(tmp_path / "out") == before
    assert problems_of(tmp_path / "out") == []
    with pytest.raises(UserError, match=r"made with other options \(kind=latents, now pixels"):
        run(few, tmp_path / "out")
