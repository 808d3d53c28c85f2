"""From pictures to a judged model: shards, statistics, training, evaluation, guidance search, each by its command."""

import json
import shlex

import pytest
from features_of_tests import write_inception
from PIL import Image
from shrunk import BACKBONE

from pmf_lightning import compose
from pmf_lightning.data.sources.shapes.source import Shapes
from pmf_lightning.evaluate import evaluate
from pmf_lightning.make_stats import make_stats
from pmf_lightning.search_guidance import search
from pmf_lightning.shard import shard
from pmf_lightning.train import train

CLASSES, IMAGES = 3, 48
SHORT = ["model=pmf_tiny", "batch=16", "steps=4", "sample_grid.enabled=false", "checkpoint.every_images=64"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder per kind of shape, and some of the images."""
    folder = tmp_path_factory.mktemp("pictures")
    split = Shapes(name="shapes", resolution=64, channels=3, classes=CLASSES, images=IMAGES, held_out_images=2).train()
    images, labels = split.batch(range(IMAGES))
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / f"kind{label}").mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"kind{label}" / f"{number}.png")
    return folder, images


@pytest.mark.slow
def test_from_pictures_to_the_best_guidance(pictures, tmp_path):
    folder, images = pictures
    data = ["data=shards", f"data.root={tmp_path / 'shards'}"]
    shard(
        compose(
            [f"in={folder}", f"out={tmp_path / 'shards'}", "size=64", "records_per_shard=20", "num_workers=1"], "shard"
        )
    )
    inception = [f"extractor.weights={write_inception(tmp_path / 'inception.pth', images[:8])}"]
    make_stats(compose([*data, *inception, f"out={tmp_path / 'stats.npz'}"], "make_stats"))
    reference = f"reference={tmp_path / 'stats.npz'}"

    run = tmp_path / "run"
    judged = ["metrics.n=12", "metrics.batch_size=6", f"metrics.{reference}", *inception]  # shards are judged by FID
    summary = train(compose([*BACKBONE, *SHORT, *data, *judged, f"run_dir={run}"]))
    assert (summary["metric"], summary["n"], summary["stopped_early"]) == ("fid12_jit", 12, False)

    common = [f"ckpt={run}", reference, *inception, "batch_size=6"]
    report = evaluate(compose([*common, "n=12", f"out={tmp_path / 'evaluation'}"], "evaluate"))
    assert report["metric"] == "fid12_jit"
    assert report["fid"] == pytest.approx(summary["fid"], rel=1e-6)
    assert report["inception_score"] == pytest.approx(summary["is"], rel=1e-6)
    assert report["kid"] is not None

    space = ["omega=[1,4]", "intervals=[[0,1]]", "ema=[2k]", "n=9", "n_final=12", "shown=6"]
    found = search(compose([*common, *space, f"out={tmp_path / 'guidance'}"], "search_guidance"))
    assert len(found["tried"]) == 2
    assert found["best"].fid == min(record.fid for record in found["tried"])
    assert found["final"].scores["kid"] is not None
    best = json.loads((tmp_path / "guidance" / "best.json").read_text())
    words = shlex.split(best["evaluate"])[3:]
    again = evaluate(compose([*words, *inception, "batch_size=6", f"out={tmp_path / 'again'}"], "evaluate"))
    assert again["fid"] == pytest.approx(found["final"].fid, rel=1e-6)
    assert {path.suffix for path in (tmp_path / "guidance").glob("*.*")} == {".png", ".csv", ".json"}
