"""Class names: in checkpoints, folders of weights, the sample command and the titles of grids."""

import json

import numpy as np
import pytest
import stored
import torch
from PIL import Image

from pmf_lightning import UserError
from pmf_lightning.data.transforms import to_float
from pmf_lightning.pipeline.checkpoints import load_checkpoint
from pmf_lightning.pipeline.class_names import class_numbers, column_titles
from pmf_lightning.pipeline.conversion import from_checkpoint
from pmf_lightning.reports.plots import strip_of
from pmf_lightning.reports.runs import Run, Samples
from pmf_lightning.training.plots import save_grid
from pmf_lightning.utils.grid_titles import HEIGHT

CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def test_classes_are_named_or_numbered():
    assert class_numbers([3, "trouser", "Ankle boot", "BAG"], 10, CLOTHES) == [3, 1, 9, 8]
    assert class_numbers(["a", "A"], 2, ["A", "a"]) == [1, 0]
    many = [f"n{label:08d}" for label in range(1000)]
    for chosen, names, words in (
        (["kase"], ["Käse", "été"], "classes=kase: kase is not a class of this model; did you mean Käse"),
        (["trousers"], CLOTHES, "classes=trousers: trousers is not a class of this model; did you mean Trouser"),
        (["x"], many, "it has 1000, such as n00000000, n00000001, n00000002"),
        (["x"], None, "this model has no class names; give numbers, 0 to 9"),
        ([10], CLOTHES, "10 is not a class; the classes of this model are 0 to 9"),
    ):
        with pytest.raises(UserError) as caught:
            class_numbers(chosen, 1000 if names is many else 10, names)
        assert words in str(caught.value)
        assert len(str(caught.value)) < 200


def test_names_are_stored_and_damaged_ones_ignored(tmp_path):
    path, contents = tmp_path / "run" / "checkpoints" / "last.ckpt", stored.checkpoint()
    path.parent.mkdir(parents=True)
    torch.save({**contents, "class_names": CLOTHES}, path)
    assert load_checkpoint(path).class_names == CLOTHES
    folder = tmp_path / "weights"
    stored.weights_folder.write(folder, from_checkpoint(path, None))
    assert load_checkpoint(folder).class_names == CLOTHES
    saved = {"global_step": 3}
    module = load_checkpoint(path)
    module.on_save_checkpoint(saved)
    assert saved["class_names"] == CLOTHES
    for damaged in (CLOTHES[:9], [1] * 10, "names", None):
        torch.save({**contents, "class_names": damaged}, path)
        assert load_checkpoint(path).class_names is None
    (tmp_path / "run" / "classes.json").write_text(json.dumps({"class_names": CLOTHES}))  # of an older run
    assert load_checkpoint(path).class_names == CLOTHES


def test_columns_have_the_title_of_their_class(tmp_path):
    assert column_titles([8, 1, 8, 1, 8], 2, CLOTHES) == ["Bag", "Trouser"]
    assert column_titles([8, 1, 1, 8], 2, CLOTHES) is None
    assert column_titles([8, 1], 2, None) is None
    images = torch.randint(0, 256, (20, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    plain = Image.open(save_grid(to_float(images), 10, tmp_path / "plain.png"))
    titled = Image.open(save_grid(to_float(images), 10, tmp_path / "titled.png", CLOTHES))
    assert titled.size == (plain.width, plain.height + HEIGHT)
    assert np.array_equal(np.asarray(titled)[HEIGHT:], np.asarray(plain))
    strip = np.asarray(titled)[:HEIGHT].min((0, 2))
    inked = [strip[2 + 66 * column : 66 + 66 * column].min() < 128 for column in range(10)]
    assert inked == [True] * 10
    assert not (strip[::66] < 128).any()  # a long title stays within its column

    config = {"sample_grid": {"columns": 10}, "data": {"classes": 10}}
    run = Run(tmp_path, "run", "config.yaml", config, {}, {}, None, [], Samples(tmp_path / "titled.png"))
    assert np.array_equal(np.asarray(strip_of(run, 1)), np.asarray(plain)[: 66 + 2])
