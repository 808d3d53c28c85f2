"""The recipes of docs/data.md for one's own images, run on files that the test makes."""

import io
import json
import re
import shlex
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from test_data import entry

from pmf_lightning import compose
from pmf_lightning.data.images.class_folders import count_class_folders
from pmf_lightning.data.shards.manifest import shards_say
from pmf_lightning.sample import sample
from pmf_lightning.shard import shard
from pmf_lightning.train import train
from pmf_lightning.utils.hydra_compat import register_resolver

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SECTION = re.search(r"## Your own images\n\n```bash\n(.*?)```", PAGE.read_text(), re.S)[1]
RECIPES = [shlex.split(line, comments=True)[1:] for line in SECTION.splitlines()]
SIDE, EACH = 16, 10
CLASSES = {"pets": 2, "animals": 3, "faces": 1, "cifar10-32x32.zip": 2, "train": 2, "val": 2, "emoji": 1}


def picture(number, kind="PNG", alpha=False):
    """A picture of one colour; with ``alpha``, of bright red that its transparency hides, and a blue square."""
    levels = np.full((20, 24, 4 if alpha else 3), 5 * number, np.uint8)
    if alpha:
        levels[:] = 255, 0, 0, 0
        levels[8:12, 10:14] = 0, 0, 255, 255
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, kind)
    return stream.getvalue()


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def tar_of_img2dataset(path):
    with tarfile.open(path, "w:gz") as tar:
        for number in range(2 * EACH):
            about = json.dumps({"caption": f"picture {number}", "style": "ab"[number % 2]}).encode()
            for ending, content in (("jpg", picture(number, "JPEG")), ("json", about), ("txt", b"picture")):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def files(tmp_path):
    """The folders, zips and tars that the recipes name, below ``tmp_path``."""
    named = {f"pets/{'cat' if i % 2 else 'dog'}/{i}.png": picture(i) for i in range(2 * EACH)}
    kinds = ("mammals/cat", "mammals/dog", "fish")
    named |= {f"animals/{kind}/{i}.png": picture(i) for kind in kinds for i in range(EACH)}
    named |= {f"faces/{i:05d}.png": picture(i) for i in range(EACH)}
    named |= {f"emoji/{i}.png": picture(i, alpha=True) for i in range(EACH)}
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(2 * EACH)]
    named |= {f"val/{name}": picture(i, "JPEG") for i, name in enumerate(names)}
    named["val.txt"] = "".join(f"{name} {i % 2}\n" for i, name in enumerate(names)).encode()
    for name, content in named.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    edm = {f"00000/img{i:08d}.png": picture(i) for i in range(2 * EACH)}
    labels = {"labels": [[name, i % 2] for i, name in enumerate(edm)]}
    zipped(tmp_path / "cifar10-32x32.zip", edm | {"dataset.json": json.dumps(labels)})
    splits = [("train", "cat"), ("train", "dog"), ("val", "cat")]
    zipped(tmp_path / "afhq.zip", {f"{a}/{b}/{i}.png": picture(i) for a, b in splits for i in range(EACH)})
    (tmp_path / "laion").mkdir()
    tar_of_img2dataset(tmp_path / "laion" / "00000.tar.gz")
    return tmp_path


def options_of(recipe, files):
    """The options of a recipe as a mapping, for files below ``files``."""
    given = (option.replace("/data/", f"{files}/").split("=", 1) for option in recipe[1:])
    return dict(given)


def run_shard(recipe, files):
    cfg = compose(["size=16", "num_workers=1"], "shard")
    return shard(OmegaConf.merge(cfg, options_of(recipe, files) | {"size": SIDE}))


def test_each_recipe_reads_its_images(files, capsys):
    register_resolver("shards_say", shards_say)
    for recipe in RECIPES:
        options = options_of(recipe, files)
        if recipe[0] == "shard":
            made = run_shard(recipe, files)
            assert (made.manifest.class_names, made.manifest.per_class) == (["a", "b"], [EACH, EACH])
            continue
        if options["data"] == "shards":
            assert (shards_say(options["data.root"], "classes"), shards_say(options["data.root"], "resolution")) == (
                2,
                SIDE,
            )
            continue
        root, rule = options["data.root"], options.get("data.label", "auto")
        wanted = 1 if rule == "none" else CLASSES[Path(root).name]
        assert count_class_folders(root, rule) == wanted
        fields = {name.removeprefix("data."): value for name, value in options.items() if name.startswith("data.")}
        source = entry("folder", **fields, resolution=SIDE, cache_dir=str(files / "cache"))
        source.check()
        rows = source.train()
        assert len(rows) == 0.9 * EACH * max(wanted, 2 if Path(root).name == "pets" else 1)
        if Path(root).name == "emoji":
            assert f"{EACH} with transparency" in capsys.readouterr().out
            image = rows[0][0].float()
            assert (image[:, 0, 0] == 255).all()  # white, and not the hidden red
            assert (image[0] <= image[2]).all()  # nowhere is there more red than blue


@pytest.mark.slow
@pytest.mark.parametrize("number", [i for i, recipe in enumerate(RECIPES) if recipe[0] == "train"])
def test_each_recipe_trains_and_samples(files, number):
    options = options_of(RECIPES[number], files)
    if options["data"] == "shards":
        run_shard(next(recipe for recipe in RECIPES if recipe[0] == "shard"), files)
    else:
        options |= {"data.resolution": SIDE, "data.cache_dir": files / "cache"}
    small = {
        "steps": 20,
        "batch": 8,
        "data.held_out_fraction": 0.3,
        "metrics": "small",
        "metrics.classifier.steps": 5,
        "run_dir": files / "run",
    }
    summary = train(compose([f"{name}={value}" for name, value in (options | small).items()]))
    assert (summary["steps"], summary["fd"] > 0) == (20, True)
    made = sample(compose([f"ckpt={files / 'run'}", "n=3", f"out={files / 'out'}"], "sample"))
    with np.load(made["images"]) as found:
        assert found["arr_0"].shape == (3, SIDE, SIDE, 3)
