import errno
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from read_images import read_image
from test_data import entry, noise

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.images.class_folders import count_class_folders
from pmf_lightning.data.sources import decode_cache
from pmf_lightning.data.transforms import centre_crop, read_square
from pmf_lightning.utils.cache import atomic_write, cache_root
from pmf_lightning.utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Two classes of 20 and 10 images, one of them in a deeper folder, and things to be ignored."""
    root = tmp_path / "images"
    for label, (name, count) in enumerate((("cats", 20), ("dogs", 10))):
        (root / name / "deep").mkdir(parents=True)
        for i in range(count):
            place = root / name / ("deep" if i == 3 else "") / f"{i:02d}.{'PNG' if i % 2 else 'bmp'}"
            Image.fromarray(noise(20, 24, seed=100 * label + i)).save(place)
    (root / "cats" / "notes.txt").write_text("not an image")
    (root / "cats" / "._01.png").write_text("left by a file browser")
    (root / ".hidden").mkdir()
    return root


def folder(root, **overrides):
    return entry("folder", **{"root": str(root), "cache_dir": str(root.parent / "cache"), "resolution": 8, **overrides})


def visible(cache):
    return [path.name for path in cache.iterdir() if not path.name.startswith(".")] if cache.exists() else []


def test_images_labels_and_split(root, capsys):
    source = folder(root)
    assert isinstance(source, DataSource)
    assert source.classes == count_class_folders(str(root)) == 2
    source.check()
    assert not visible(root.parent / "cache")  # checking decodes nothing
    train, held_out = source.train(), source.held_out()
    assert "decoding 30 images to (3, 8, 8) once: 0.00 GiB" in capsys.readouterr().out
    assert torch.bincount(train.labels).tolist() == [18, 9]
    assert torch.bincount(held_out.labels).tolist() == [2, 1]
    files = {p: label for label, name in enumerate(("cats", "dogs")) for p in (root / name).rglob("[0-9]*")}
    expected = {np.asarray(centre_crop(Image.open(p), 8)).transpose(2, 0, 1).tobytes(): files[p] for p in files}
    found = {image.numpy().tobytes(): label for part in (train, held_out) for image, label in part}
    assert found == expected
    assert isinstance(train.images, np.memmap)


def test_decoded_once_and_split_without_decoding_again(root, monkeypatch):
    ten = folder(root).held_out()
    monkeypatch.setattr(decode_cache, "read_square", lambda *_: pytest.fail("decoded twice"))
    again = folder(root).held_out()
    assert np.array_equal(ten.images, again.images)
    half = folder(root, held_out_fraction=0.5)
    assert torch.bincount(half.held_out().labels).tolist() == [10, 5]
    assert np.array_equal(half.held_out().images[:3], ten.images)  # a larger share begins with the smaller one
    none = folder(root, held_out_fraction=0.0)
    assert len(none.train()) == 30
    with pytest.raises(UserError, match=r"held_out_fraction=0\.0 .* of the 30 .*: set it above 0\.025, or"):
        none.held_out()


def test_fingerprint_follows_what_makes_the_images(root):
    def prints():
        variants = ({}, {"resolution": 16}, {"channels": 1}, {"held_out_fraction": 0.2})
        return [folder(root, **variant).fingerprint() for variant in variants]

    first = prints()
    assert len(set(first)) == 4
    assert prints() == first
    os.utime(root / "dogs" / "00.bmp", ns=(1, 1))
    changed = prints()
    assert not set(changed) & set(first)
    (root / "dogs" / "00.bmp").rename(root / "dogs" / "zz.bmp")
    assert not set(prints()) & {*first, *changed}


def test_interrupted_preparation_leaves_nothing_and_starts_again(root, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return read_square(*args)

    monkeypatch.setattr(decode_cache, "read_square", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder(root).train()
    cache = root.parent / "cache"
    assert not visible(cache)
    assert not list(cache.glob(".*.partial"))
    monkeypatch.setattr(decode_cache, "read_square", read_square)
    name = f"folder-{folder(root)._decoded_key}"
    (cache / f".{name}.0123.partial").mkdir()  # as kill -9 would leave it
    assert len(folder(root).train()) == 27
    assert visible(cache) == [name]
    assert not list(cache.glob(".*.partial"))


def test_disk_that_is_too_small_is_refused(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5000))
    with pytest.raises(UserError, match=r"need 0\.0 GiB .* set data.cache_dir"):
        folder(root).train()
    assert not visible(root.parent / "cache")


@pytest.fixture
def bad(root):
    """Add three files that cannot be read to the cats."""
    whole = (root / "cats" / "01.PNG").read_bytes()
    (root / "cats" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "cats" / "empty.png").touch()
    (root / "cats" / "text.jpg").write_text("I am not a picture")
    return root


def test_unreadable_images_are_skipped_counted_and_named(bad):
    names = ("truncated.png", "empty.png", "text.jpg")
    for _ in range(2):  # the second time from the cache
        source = folder(bad)
        with pytest.warns(UserWarning, match="3 of 33 images cannot be read and are skipped: cats/"):
            train = source.train()
        assert len(train) + len(source.held_out()) == 30
    (listed,) = (bad.parent / "cache").glob("*/unreadable.txt")
    lines = listed.read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == sorted(f"cats/{name}" for name in names)
    assert any("truncated" in line.split("\t")[1] for line in lines)
    assert any("cannot identify" in line.split("\t")[1] for line in lines)


def test_a_lack_of_memory_is_no_fault_of_the_images(root, monkeypatch):
    def scarce(path, *others):
        if path.name == "07.PNG":
            raise MemoryError
        return read_square(path, *others)

    monkeypatch.setattr(decode_cache, "read_square", scarce)
    with pytest.raises(UserError, match=r"no memory to decode .*/07\.PNG"):
        folder(root).train()
    monkeypatch.setattr(decode_cache, "read_square", read_square)
    assert len(folder(root).train()) == 27


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOENT])
def test_a_failing_disk_is_no_fault_of_the_images(root, monkeypatch, number):
    def failing(path, *others):
        if path.name == "07.PNG":
            raise OSError(number, os.strerror(number))
        return read_square(path, *others)

    monkeypatch.setattr(decode_cache, "read_square", failing)
    with pytest.raises(
        UserError, match=rf"cannot read .*/07\.PNG \({os.strerror(number)}\), and it may not be damaged"
    ):
        folder(root).train()
    assert not visible(root.parent / "cache")
    monkeypatch.setattr(decode_cache, "read_square", read_square)
    assert len(folder(root).train()) == 27


def test_a_seek_that_a_damaged_file_asks_for_is_its_fault(root, monkeypatch):
    def damaged(path, *others):
        if path.name == "07.PNG":
            with path.open("rb") as file:
                file.seek(-1)
        return read_square(path, *others)

    monkeypatch.setattr(decode_cache, "read_square", damaged)
    with pytest.warns(UserWarning, match="2 of 30 images cannot be read"):
        folder(root).train()


@pytest.mark.parametrize("name", ["truncated.png", "empty.png", "text.jpg"])
@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_image_is_fatal_on_request(bad, name, cached):
    for other in {"truncated.png", "empty.png", "text.jpg"} - {name}:
        (bad / "cats" / other).unlink()
    if cached:
        with pytest.warns(UserWarning, match=name):
            folder(bad).train()
    with pytest.raises(UserError, match=rf"cannot read .*cats/{name} \(.*data.unreadable=skip"):
        folder(bad, unreadable="fail").train()
    assert cached or not visible(bad.parent / "cache")


def test_class_without_a_readable_image_is_refused(root):
    (root / "eels").mkdir()
    (root / "eels" / "text.jpg").write_text("I am not a picture")
    with pytest.raises(UserError, match="eels holds no readable image"):
        folder(root).train()
    for name in ("cats", "dogs"):
        shutil.rmtree(root / name)
    with pytest.raises(UserError, match="none of the 1 images"):
        folder(root).train()


def test_unusual_pixel_formats(tmp_path):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    assert Image.open(tmp_path / "grey16.png").mode.startswith("I")
    for channels in (1, 3):
        assert (read_image(tmp_path / "grey16.png", 8, channels) == (grey >> 8)).all()  # high byte in each channel

    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    cyan = read_image(tmp_path / "cmyk.jpg", 8, 3).astype(int).mean((1, 2))
    assert cyan[0] < 10
    assert cyan[1:].min() > 245

    palette = Image.new("P", (8, 8))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (4, 0, 8, 8))
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = read_image(tmp_path / "palette.png", 8, 3)
    assert (seen[:, :, :4] == 255).all()  # red that is transparent: the white background
    assert (seen[:, :, 4:] == np.array([127, 127, 255])[:, None, None]).all()

    turned = Image.fromarray(noise(8, 8))
    exif = turned.getexif()
    exif[0x0112] = 6  # "turn me by a quarter"
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(noise(8, 8), -1).transpose(2, 0, 1)
    assert (read_image(tmp_path / "turned.png", 8, 3) == upright).all()

    assert read_image(tmp_path / "turned.png", 8, 1).shape == (1, 8, 8)


def test_folders_that_cannot_work(root, tmp_path):
    with pytest.raises(UserError, match=r"set data\.root"):
        count_class_folders(None)
    with pytest.raises(UserError, match=r"nowhere is not a folder: set it"):
        count_class_folders(str(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "loose.txt").touch()
    with pytest.raises(UserError, match=r"holds no images and no folders: put the images into it, or .*<class>/"):
        count_class_folders(str(empty))
    with pytest.raises(UserError, match=r"set data\.root"):
        entry("folder", classes=2).check()
    for overrides, words in (
        ({"classes": 5}, "data.classes=5, but .* holds 2 class folders"),
        ({"channels": 2}, "data.channels=2"),
        ({"resolution": 0}, "data.resolution=0"),
        ({"unreadable": "maybe"}, "data.unreadable=maybe: set it to skip or fail"),
        ({"held_out_fraction": 1.0}, "data.held_out_fraction=1.0"),
    ):
        with pytest.raises(UserError, match=words):
            folder(root, **overrides).check()
    (root / "ants").mkdir()
    (root / "ants" / "readme.txt").touch()
    with pytest.raises(
        UserError, match=r"class folder .*ants holds no image \(left out: 1 not an image \(.txt\): ants/readme.txt\)"
    ):
        folder(root).check()


def test_cache_folder(tmp_path, monkeypatch):
    assert cache_root(str(tmp_path / "a" / "b")).is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_root(None) == cache_root("") == tmp_path / "home" / "pmf_lightning"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: set PMF_CACHE"):
        cache_root(str(tmp_path / "file"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user of whom the machine knows nothing, as in a container
    with pytest.raises(UserError, match=r"cache folder: .*home directory.* or set PMF_CACHE"):
        cache_root(None)


def test_atomic_write(tmp_path):
    (tmp_path / "kept").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "kept") as partial:
        partial.write_text(Path("nowhere").read_text())
    assert (tmp_path / "kept").read_text() == "old"
    with atomic_write(tmp_path / "kept") as partial:
        partial.write_text("new")
        assert (tmp_path / "kept").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "new"
