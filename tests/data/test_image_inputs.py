"""The lister and the decoder of image inputs: every file is used, or named with a reason; classes; pixels."""

import json
import os
import resource
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from read_images import read_image
from test_data import entry, noise

from pmf_lightning.data import transforms
from pmf_lightning.data.images.class_folders import (
    count_class_folders,
    describe_classes,
    find_classes,
    image_tree,
    in_order,
)
from pmf_lightning.data.images.decoder import CMYK, COLOURED, DEEP, FIRST_FRAME, TRANSPARENT, TURNED, open_picture
from pmf_lightning.data.images.decoder import GREY as IN_GREY
from pmf_lightning.data.images.files import open_files
from pmf_lightning.data.images.kinds import endings, formats
from pmf_lightning.data.images.listing import AGAIN, DANGLING, LOOP, describe_skipped, list_images, reasons
from pmf_lightning.data.transforms import centre_crop, read_square
from pmf_lightning.evaluation.image_files import open_images
from pmf_lightning.training.class_names import announce_classes, check_same_classes
from pmf_lightning.utils.errors import NotResumed, UserError

GREY = 90


def save(path, *size, colour=GREY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size or (8, 8), (colour,) * 3).save(path, **options)


# --- which files ---


@pytest.mark.parametrize(
    "ending", ["png", "JPG", "jpe", "jfif", "webp", "bmp", "TIF", "tiff", "gif", "ppm", "tga", "jp2"]
)
def test_kinds_of_files_are_used(tmp_path, ending):
    kinds = {"JPG": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "TIF": "TIFF"}
    save(tmp_path / f"a.{ending}", format=kinds.get(ending))
    assert list_images(tmp_path).images == [f"a.{ending}"]
    levels = read_image(tmp_path / f"a.{ending}", 8, 3)
    assert np.abs(levels.astype(int) - GREY).max() <= 3


def test_what_needs_another_program_is_no_image():
    assert not endings() & {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf"}
    assert {".png", ".jpeg", ".pgm", ".pbm", ".ico"} <= endings()


def test_jpeg_xl_is_an_image_where_its_plugin_is_installed(tmp_path, monkeypatch):
    plugin = "from PIL import Image\nImage.register_open('JXL', None)\nImage.register_extension('JXL', '.jxl')\n"
    (tmp_path / "pillow_jxl.py").write_text(plugin)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    for function in (formats, endings):
        function.cache_clear()
    try:
        assert "JXL" in formats()
        assert ".jxl" in endings()
    finally:
        sys.modules.pop("pillow_jxl", None)
        for function in (formats, endings):
            function.cache_clear()


def test_postscript_under_another_name_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(Exception, match="cannot identify"):
        read_image(tmp_path / "a.png", 8, 3)


@pytest.mark.parametrize(
    "name",
    [
        *(".hidden.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "deep/@eaDir/a.png", ".git/x/a.png"),
        *("Thumbs.db", "desktop.ini", "lost+found/a.png"),
    ],
)
def test_hidden_files_are_counted(tmp_path, name):
    save(tmp_path / "seen.png")
    save(tmp_path / name, format="PNG")
    found = list_images(tmp_path)
    assert found.images == ["seen.png"]
    assert reasons(found.left_out) == {"hidden": 1}


def test_every_file_is_used_or_named(tmp_path):
    for name in ("b/1.png", "a/2.gif", "a/deep/1.tif", ".cache/1.png", ".cache/2.png"):
        save(tmp_path / name)
    for name in ("a/notes.txt", "a/README", "b/photo.HEIC"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "gone.png").symlink_to("/not/mounted/x.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    found = list_images(tmp_path)
    assert found.images == ["a/2.gif", "a/deep/1.tif", "b/1.png"]
    assert reasons(found.left_out) == {
        "hidden": 2,
        "not an image (.txt)": 1,
        "not an image (no extension)": 1,
        "an image format that Pillow does not read here (.heic)": 1,
        DANGLING: 1,
        "neither a file nor a folder": 1,
    }
    said = describe_skipped(found.left_out)
    for words in ("2 hidden: .cache/", "b/gone.png", "a/README"):
        assert words in said


def test_names_that_no_terminal_prints_are_said(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / os.fsdecode(b"\xff.txt")).touch()
    describe_skipped(image_tree(str(tmp_path)).left_out).encode("utf-8")


def test_linked_folders_are_listed_once(tmp_path):
    root = tmp_path / "root"
    save(root / "a" / "1.png")
    save(root / "b" / "1.png")
    save(tmp_path / "elsewhere" / "c" / "1.png")
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")  # a class that lies elsewhere
    (root / "again").symlink_to(root / "b")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "other").symlink_to("../b")
    (root / "a" / "self").symlink_to(".")
    (root / "a" / "circle").symlink_to("circle")
    tree = image_tree(str(root))
    assert tree.names == ["a/1.png", "b/1.png", "c/1.png"]
    assert tree.class_names == ["a", "b", "c"]
    assert tree.labels == [0, 1, 2]
    assert reasons(tree.left_out) == {AGAIN: 2, LOOP: 2, DANGLING: 1}
    assert count_class_folders(str(root)) == 3


def test_links_to_files_are_used(tmp_path):
    save(tmp_path / "store" / "x.png")
    (tmp_path / "few" / "a").mkdir(parents=True)
    (tmp_path / "few" / "a" / "1.png").symlink_to(tmp_path / "store" / "x.png")
    assert image_tree(str(tmp_path / "few")).names == ["a/1.png"]


def test_a_link_above_the_root_lists_nothing_outside(tmp_path):
    save(tmp_path / "outside.png")
    save(tmp_path / "root" / "a" / "1.png")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path)
    assert image_tree(str(tmp_path / "root")).names == ["a/1.png"]


def test_folders_without_permission_are_named(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/closed/1.png", "b/1.png"):
        save(tmp_path / name)
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    tree = image_tree(str(tmp_path))
    assert tree.names == ["a/1.png", "b/1.png"]
    assert reasons(tree.left_out) == {"a folder that cannot be read (Permission denied)": 1}
    (tmp_path / "b").rename(tmp_path / "b_closed")
    with pytest.raises(
        UserError, match=r"class folder .*b_closed holds no image \(left out: 1 a folder that cannot be"
    ):
        image_tree(str(tmp_path))


# --- classes ---


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["0", "1", "10", "11", "2"], ["0", "1", "2", "10", "11"]),
        (["007", "07", "6", "1000"], ["6", "007", "07", "1000"]),
        (["-1", "10", "2"], ["-1", "2", "10"]),
        (["0.5", "10.0", "2.0"], ["0.5", "2.0", "10.0"]),
        (["n01440764", "n00000002"], ["n00000002", "n01440764"]),
        (["10", "2", "cat"], ["10", "2", "cat"]),
        (["class10", "class2"], ["class10", "class2"]),
        (["²", "1"], ["1", "²"]),
    ],
)
def test_order_of_classes(tmp_path, names, ordered):
    assert in_order(names) == ordered
    for name in names:
        save(tmp_path / name / "1.png")
    assert image_tree(str(tmp_path)).class_names == ordered


def test_labels_follow_the_order_and_change_the_cache(tmp_path):
    for name in ("9", "10", "11"):
        save(tmp_path / "set" / name / "1.png", colour=int(name) * 10)
    source = entry("folder", root=str(tmp_path / "set"), cache_dir=str(tmp_path), resolution=8, held_out_fraction=0.0)
    rows = source.train()
    assert {int(label): int(image[0, 0, 0]) for image, label in rows} == {0: 90, 1: 100, 2: 110}
    assert source.class_names == ["9", "10", "11"]
    before = source.fingerprint()
    (tmp_path / "set" / "9").rename(tmp_path / "set" / "12")
    assert entry("folder", root=str(tmp_path / "set"), cache_dir=str(tmp_path), resolution=8).fingerprint() != before


def test_classes_are_said():
    assert describe_classes(["a"]) == "1 class (a)"
    assert describe_classes([str(i) for i in range(1000)]) == "1,000 classes (0, 1, 2, 3, 4, 5, 6, ..., 999)"


@pytest.mark.parametrize(
    ("folders", "remedy"),
    [
        (["train/cat", "val/cat", "test/cat"], "set data.root={}/train"),
        (["Training/cat", "Validation/cat"], "set data.root={}/Training"),
        (["train2017/cat", "val2017/cat", "annotations"], "set data.root={}/train2017"),
        (["images_train/cat", "images_test/cat"], "set data.root={}/images_train"),
        (["train/cat", "train/dog"], "set data.root={}/train"),
        (["imagenet/train/cat", "imagenet/val/cat"], "set data.root={}/imagenet/train"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "give a folder of one split"),
        (["valid/cat", "test/cat"], "set data.root={}/test"),
    ],
)
def test_a_folder_above_the_classes_is_refused(tmp_path, folders, remedy):
    for name in folders:
        save(tmp_path / name / "1.png")
    with pytest.raises(UserError, match="split") as refused:
        count_class_folders(str(tmp_path))
    assert remedy.format(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("names", [["bus", "car", "train"], ["train"], ["tester", "trainer"], ["latest", "validated"]])
def test_names_of_splits_can_be_classes(tmp_path, names):
    for name in names:
        save(tmp_path / name / "1.png")
    assert find_classes(str(tmp_path)).names == names


@pytest.mark.parametrize(
    "names",
    [
        ["00000/00000.png", "01000/01999.png", "02000/02000.png"],
        ["0/7.png", "100/100.png", "200/250.png"],
        ["00000/000000001.jpg", "00001/000010001.jpg"],
        ["1.png", "2.png"],
    ],
)
def test_parts_of_a_set_and_flat_folders_are_one_class(tmp_path, names):
    for name in names:
        save(tmp_path / "faces" / name)
    tree = image_tree(str(tmp_path / "faces"))
    assert tree.class_names == ["faces"]
    assert (tree.names, tree.labels) == (names, [0] * len(names))
    assert "all of them are one class" in tree.summary()[1]


@pytest.mark.parametrize("names", [["0/0.png", "1/7.png"], ["100/1.png", "200/1.png"], ["0/a.png", "1000/b.png"]])
def test_numbers_with_other_images_are_classes(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    assert len(image_tree(str(tmp_path)).class_names) == 2


def test_a_folder_of_tars_is_named_to_shard(tmp_path):
    (tmp_path / "00.tar.gz").touch()
    with pytest.raises(
        UserError, match=r"holds no images and no folders: python -m pmf_lightning.shard in=.* reads its tars"
    ):
        count_class_folders(str(tmp_path))


def test_images_outside_the_classes_are_named(tmp_path):
    save(tmp_path / "loose.png")
    save(tmp_path / "a" / "1.png")
    assert reasons(image_tree(str(tmp_path)).left_out) == {"an image outside the class folders": 1}


# --- pixels ---


def rgba(corner=0):
    """A grey square in noise that is hidden by transparency."""
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    levels[..., 3] = 0
    levels[2:6, 2:6] = (*(GREY,) * 3, 255)
    levels[0, 0, 3] = corner
    return Image.fromarray(levels)


TRANSPARENT_KINDS = {
    "rgba.png": rgba,
    "rgba.webp": rgba,
    "rgba.tif": rgba,
    "grey.png": lambda: rgba().convert("LA"),
    "palette.png": lambda: rgba().quantize(16),
    "palette.gif": rgba,
}


@pytest.mark.parametrize("name", TRANSPARENT_KINDS)
@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_show_the_background(tmp_path, name, background, level, channels):
    TRANSPARENT_KINDS[name]().save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    levels, done = read_square(tmp_path / name, 8, channels, background)
    grey = name == "grey.png"
    assert done == (*([] if grey == (channels == 1) else [IN_GREY if grey else COLOURED]), TRANSPARENT)
    assert levels.shape == (channels, 8, 8)
    assert (levels[:, 0] == level).all()
    assert np.abs(levels[:, 2:6, 2:6].astype(int) - GREY).max() <= 3


def test_half_transparent_and_checker(tmp_path):
    rgba(corner=255).resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    levels = read_image(tmp_path / "a.png", 32, 3, "checker")
    assert set(np.unique(levels[:, -8:])) == {204, 255}
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert (read_image(tmp_path / "half.png", 8, 3) == 127).all()
    with pytest.raises(UserError, match="background=red: set it to white, black or checker"):
        open_images(tmp_path, 3, "red")


def test_opaque_alpha_changes_nothing(tmp_path):
    image = Image.fromarray(noise(8, 8))
    image.convert("RGBA").save(tmp_path / "a.png")
    levels, done = read_square(tmp_path / "a.png", 8, 3, "black")
    assert done == ()
    assert (levels == noise(8, 8).transpose(2, 0, 1)).all()


def test_great_images_are_converted_in_strips(tmp_path, monkeypatch):
    picture = rgba().resize((40, 70))
    picture.save(tmp_path / "a.png")
    wanted = {name: read_image(tmp_path / "a.png", 40, 3, name) for name in ("white", "checker")}
    monkeypatch.setattr("pmf_lightning.data.images.decoder.STRIP", 1)
    for name, levels in wanted.items():
        assert (read_image(tmp_path / "a.png", 40, 3, name) == levels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jpg"])
def test_pictures_are_upright(tmp_path, orientation, ending):
    """Two colours, stored as the camera saw them; upright, the left half is dark and the upper right is bright."""
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, 8:] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{ending}", exif=exif)
    levels, done = read_square(tmp_path / f"a.{ending}", 16, 1, "white")
    assert np.abs(levels[0].astype(int) - upright).max() < 40
    assert (TURNED in done) == (orientation > 1)


def test_a_damaged_orientation_is_none(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00rubbish")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about the metadata
        assert (read_image(tmp_path / "a.png", 8, 3) == noise(8, 8).transpose(2, 0, 1)).all()


def deep_kinds():
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    yield "png", Image.fromarray(ramp), ramp >> 8
    yield "tif", Image.fromarray(ramp), ramp >> 8
    yield "tif", Image.fromarray(ramp.astype(np.int32)), ramp >> 8
    yield "tif", Image.fromarray((ramp / 65535).astype(np.float32)), np.rint(ramp / 65535 * 255)
    yield "tif", Image.fromarray((ramp >> 8).astype(np.float32)), ramp >> 8
    yield "tif", Image.fromarray((ramp >> 8).astype(np.int32)), ramp >> 8


@pytest.mark.parametrize(("ending", "image", "wanted"), list(deep_kinds()))
def test_deep_greys_are_scaled(tmp_path, ending, image, wanted):
    image.save(tmp_path / f"a.{ending}")
    levels, done = read_square(tmp_path / f"a.{ending}", 8, 1, "white")
    assert np.abs(levels[0] - wanted).max() <= 0.5
    assert done == (DEEP,)


def test_a_16_bit_pgm_is_scaled(tmp_path):
    ramp = (np.arange(64) * 1000).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + ramp.tobytes())
    assert (read_image(tmp_path / "a.pgm", 8, 1)[0].ravel() == ramp >> 8).all()


def test_levels_of_no_known_scale_are_refused(tmp_path):
    for number, values in enumerate(([-1.0, 1.0], [0.0, 5000.0], [0.0, float("nan")])):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / f"{number}.tif")
        with pytest.raises(ValueError, match="the scale is unknown"):
            read_image(tmp_path / f"{number}.tif", 8, 1)


def test_frames_and_cmyk_are_counted(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        levels, done = read_square(tmp_path / name, 8, 3, "white")
        assert FIRST_FRAME in done
        assert levels[0].mean() > 150 > 50 > levels[1].mean()
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    assert open_picture(tmp_path / "a.jpg", 3, "white").done == (CMYK,)


# --- shapes and sizes ---


@pytest.mark.parametrize("shape", [(1, 12_000), (12_000, 1), (3, 30_000), (1, 60_000)])
def test_long_thin_images_take_little_memory(tmp_path, shape):
    levels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_image(tmp_path / "a.png", 256, 3).shape == (3, 256, 256)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(("width", "height"), [(40, 8), (8, 40), (10, 7), (400, 12)])
def test_the_short_way_gives_the_square_of_the_long_one(monkeypatch, width, height):
    smooth = Image.fromarray(noise(4, 4)).resize((width, height), Image.Resampling.BICUBIC)
    whole = np.asarray(centre_crop(smooth, 12)).astype(int)
    monkeypatch.setattr(transforms, "LONGEST", 0)
    assert np.abs(np.asarray(centre_crop(smooth, 12)) - whole).max() <= 2


def test_a_bomb_is_an_unreadable_file(tmp_path, monkeypatch):
    for name in ("a", "b"):
        save(tmp_path / "set" / name / "1.png")
    save(tmp_path / "set" / "a" / "bomb.png", 300, 300)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    source = entry("folder", root=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), resolution=8)
    with pytest.warns(UserWarning, match=r"1 of 3 images cannot be read and are skipped: a/bomb.png"):
        source.train()
    (listed,) = (tmp_path / "cache").glob("*/unreadable.txt")
    assert "DecompressionBombError" in listed.read_text()


# --- commands ---


def test_training_data_say_what_they_are(tmp_path, capsys):
    for name in ("a", "b"):
        rgba().save(save(tmp_path / "set" / name / "0.gif") or tmp_path / "set" / name / "1.png")
    (tmp_path / "set" / "a" / "gone.png").symlink_to("nowhere")
    for _ in range(2):  # the second time from the cache
        source = entry("folder", root=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), resolution=8)
        source.train()
        said = capsys.readouterr().out
        for words in ("4 images of 2 classes (a, b) in", "(2 .gif, 2 .png)", "left out: 1 a link", f"2 {TRANSPARENT}"):
            assert words in said


def test_class_names_are_stored_and_the_same_when_a_run_is_resumed(tmp_path, capsys):
    for name in ("2", "10"):
        save(tmp_path / "set" / name / "1.png")
    (tmp_path / "set" / "2" / "notes.txt").touch()
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    source = entry("folder", root=str(tmp_path / "set"))
    with pytest.raises(NotResumed, match="label 0 was the class 10 and is now 2"):
        check_same_classes(source, checkpoint)  # of a version that sorted numbers as words
    check_same_classes(source, None)
    announce_classes(source, tmp_path / "run")
    assert "2 classes (2, 10); label i is class_names[i] of classes.json" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "classes.json").read_text())
    assert stored["class_names"] == ["2", "10"]
    assert [one["name"] for one in stored["left_out"]] == ["2/notes.txt"]
    check_same_classes(source, checkpoint)
    (tmp_path / "set" / "10").rename(tmp_path / "set" / "1")
    with pytest.raises(NotResumed, match=r"label 0 was the class 2 and is now 1 \(2 and 2 classes\); restore"):
        check_same_classes(entry("folder", root=str(tmp_path / "set")), checkpoint)


def test_background_is_part_of_the_data(tmp_path):
    rgba().save(save(tmp_path / "set" / "a" / "0.png") or tmp_path / "set" / "a" / "1.png")
    prints = set()
    for background in ("white", "black", "checker"):
        source = entry(
            "folder", root=str(tmp_path / "set"), cache_dir=str(tmp_path), resolution=8, background=background
        )
        prints.add(source.fingerprint())
    assert len(prints) == 3
    with pytest.raises(UserError, match=r"data.background=red: set it to"):
        entry("folder", root=str(tmp_path / "set"), background="red").check()


def test_judged_folders_follow_the_same_rules(tmp_path):
    rgba().save(save(tmp_path / "deep" / "0.gif") or tmp_path / "1.png")
    save(tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png")
    grey = np.full((8, 8), 40_000, np.uint16)
    Image.fromarray(grey).save(tmp_path / "2.tif")
    images = open_images(tmp_path, 1, "black")
    levels = images(0, 3)
    assert images.names == ["1.png", "2.tif", "deep/0.gif"]
    assert torch.equal(levels[:, 0, 0, 0], torch.tensor([0, 40_000 >> 8, GREY], dtype=torch.uint8))
    assert images.summary()[1].startswith("left out: 1 hidden")
    assert images.conversions() == [f"converted images: 2 {COLOURED}; 1 {DEEP}; 1 {TRANSPARENT}"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in images.names:
            archive.write(tmp_path / name, name)
    zipped = open_images(tmp_path / "all.zip", 1, "black")
    assert (zipped.names, zipped.conversions()) == (images.names, [])
    assert torch.equal(zipped(0, 3), levels)


def test_grey_among_colours_is_counted(tmp_path, capsys):
    save(tmp_path / "set" / "a.png")
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "set" / "a.png")
    Image.new("L", (8, 8), 90).save(tmp_path / "set" / "b.png")
    source = entry("folder", root=str(tmp_path / "set"), cache_dir=str(tmp_path), resolution=8, held_out_fraction=0)
    images, _ = source.train().batch([0, 1])
    assert f"converted images: 1 {IN_GREY}" in capsys.readouterr().out
    assert sorted(images[:, :, 4, 4].tolist()) == [[9, 8, 7], [90, 90, 90]]


@pytest.mark.parametrize("name", ["a.tar", "b.tar.gz", "c.tgz"])
def test_a_tar_names_the_command_that_reads_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"is a tar: make shards of it, python -m pmf_lightning.shard in=.*data=shards"):
        open_files(str(tmp_path / name), "data.root")
