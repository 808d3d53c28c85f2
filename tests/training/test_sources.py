"""Every source of images trains 20 steps and is sampled from, on small files that the test writes."""

from importlib.util import find_spec

import numpy as np
import pytest
from named_files import write_celeba, write_cifar, write_flowers, write_idx, write_stl
from shrunk import BACKBONE
from table_files import write_parquet, write_saved

from pmf_lightning import compose
from pmf_lightning.sample import sample
from pmf_lightning.train import train

# Folders, zips, tars, shards and transparent images: tests/data/test_recipes.py.
WRITERS = {
    "digits": (None, []),
    "shapes": (None, ["data.images=64", "data.held_out_images=20"]),
    "cifar10": (lambda at: write_cifar(at / "cifar-10-batches-py"), []),
    "cifar100": (lambda at: write_cifar(at / "cifar-100-python", classes=100), []),
    "mnist": (lambda at: write_idx(at / "MNIST" / "raw"), []),
    "fashion_mnist": (lambda at: write_idx(at / "FashionMNIST" / "raw"), []),
    "stl10": (lambda at: write_stl(at / "stl10_binary"), ["data.resolution=32"]),
    "flowers102": (lambda at: write_flowers(at / "flowers-102"), ["data.resolution=32"]),
    "celeba": (lambda at: write_celeba(at / "celeba"), ["data.resolution=16"]),
    "hf": (lambda at: write_parquet(at), ["data.resolution=16"]),
    "hf saved": (lambda at: write_saved(at), ["data.resolution=16", "data.held_out_split=test"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", WRITERS)
def test_every_source_trains_and_samples(source, tmp_path):
    write, more = WRITERS[source]
    name = source.partition(" ")[0]
    if name == "hf" and find_spec("pyarrow") is None:
        pytest.skip('needs pyarrow: pip install "pmf_lightning[hf]"')
    options = [f"data={name}", *more, "model=pmf_tiny", *BACKBONE, "backbone.patch=8", "metrics=none"]
    if write is not None:
        write(tmp_path)
        options += [f"data.root={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}"]
    summary = train(compose([*options, "steps=20", "batch=8", f"run_dir={tmp_path / 'run'}"]))
    assert summary["steps"] == 20
    cfg = compose([*options])
    made = sample(compose([f"ckpt={tmp_path / 'run'}", "n=3", f"out={tmp_path / 'out'}"], "sample"))
    with np.load(made["images"]) as found:
        assert found["arr_0"].shape == (3, cfg.data.resolution, cfg.data.resolution, cfg.data.channels)
