"""The log by time: bins against a hand computation, over micro-batches, devices and stops; where they are written."""

import json
import math
import shutil
import time

import pytest
import torch
from PIL import Image
from shrunk import RUN

from pmf_lightning import Batch, UserError, compose, load_checkpoint
from pmf_lightning.data.order import micro_batch_indices
from pmf_lightning.data.transforms import to_float
from pmf_lightning.train import train
from pmf_lightning.training import summary
from pmf_lightning.training.callbacks.loss_by_time import BinnedMeans
from pmf_lightning.training.loggers.jsonl import JSONLLogger
from pmf_lightning.training.plots import save_time_bins
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.rng import BatchRows


def run(folder, *overrides, pictures=False):
    """Train; pictures take longer than these few steps."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(summary, "pictures", lambda folder: (None, None))
        return train(compose([*RUN, f"run_dir={folder}", "sample_grid.every_images=1000000", *overrides]))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def by_time(row):
    return {name: value for name, value in row.items() if "/t" in name}


def test_bins_by_hand():
    bins = BinnedMeans(5, roots=["du_dt"])
    assert bins.labels == ["t0-0.2", "t0.2-0.4", "t0.4-0.6", "t0.6-0.8", "t0.8-1"]
    t = torch.tensor([0.0, 0.19, 0.2, 0.85, 1.0])  # a lower edge belongs to the bin above it, 1 to the last one
    bins.add("loss_u", t, torch.tensor([1.0, 2.0, 7.0, 3.0, 5.0]))
    bins.add("du_dt", t[:2], torch.tensor([9.0, 23.0]))
    bins.add("du_dt", t[:0], torch.tensor([]))
    means = bins.means(bins.take())
    assert means == {"du_dt/t0-0.2": 4.0, "loss_u/t0-0.2": 1.5, "loss_u/t0.2-0.4": 7.0, "loss_u/t0.8-1": 4.0}
    assert bins.take() == {}


def test_bins_need_not_divide_evenly():
    bins = BinnedMeans(3)
    bins.add("loss_u", torch.tensor([0.33, 0.34, 0.67]), torch.tensor([1.0, 2.0, 3.0]))
    assert bins.means(bins.take()) == {"loss_u/t0-0.333": 1, "loss_u/t0.333-0.667": 2, "loss_u/t0.667-1": 3}


def test_what_is_not_finite_stays_in_its_bin():
    bins = BinnedMeans(2)
    bins.add("loss_u", torch.tensor([0.1, 0.9]), torch.tensor([4.0, math.nan]))
    means = bins.means(bins.take())
    assert means["loss_u/t0-0.5"] == 4
    assert math.isnan(means["loss_u/t0.5-1"])


def test_devices_and_micro_batches_add_up():
    t, values = torch.linspace(0, 1, 40), torch.arange(40.0).square()
    whole, first, second = BinnedMeans(5), BinnedMeans(5), BinnedMeans(5)
    whole.add("loss_u", t, values)
    for part in (slice(0, 7), slice(7, 12)):  # means of means would weigh these alike
        first.add("loss_u", t[part], values[part])
    second.add("loss_u", t[12:], values[12:])
    other = torch.stack([second.tables["loss_u"]])
    assert first.means(first.take(lambda tables: tables + other)) == whole.means(whole.take())


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="bins=0"):
        BinnedMeans(0)
    with pytest.raises(UserError, match=r"diagnostics\.t_bins=0: set it to an integer, 1 or more"):
        train(compose([*RUN, "diagnostics.t_bins=0"]))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Four steps, logged every second one."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, run(folder, "steps=4", "log_every_steps=2", pictures=True)


@pytest.mark.slow
def test_a_run_logs_what_the_objective_says(straight, tmp_path):
    """The row of step 5, from the weights of step 4: squared errors of all rows, du/dt of those with t != r."""
    folder = shutil.copytree(straight[0], tmp_path / "run")
    module = load_checkpoint(folder, "raw")
    run(folder, "ckpt=last", "steps=5", "diagnostics.t_bins=4")
    digits = instantiate(compose(RUN).data).train()
    images, labels = digits.batch(micro_batch_indices(len(digits), 16, seed=0, step=4, shard=BatchRows()))
    batch = Batch(to_float(images), labels)
    draws = module.objective.draw(batch, seed=0, step=4)
    fields = module.objective(module.network, batch, draws, keep_fields=True).fields
    moving, mixed, expected = draws.t != draws.r, 0, {}
    for low, name in ((0.0, "t0-0.25"), (0.25, "t0.25-0.5"), (0.5, "t0.5-0.75"), (0.75, "t0.75-1")):
        chosen = (low <= draws.t) & (draws.t < low + 0.25)
        mixed += bool(0 < (chosen & moving).sum() < chosen.sum())
        if chosen.any():
            expected[f"loss_u/{name}"] = (fields["V"] - fields["v_g"])[chosen].square().mean().item()
            expected[f"loss_v/{name}"] = (fields["v"] - fields["v_g"])[chosen].square().mean().item()
        if (chosen & moving).any():
            expected[f"du_dt/{name}"] = fields["du_dt"][chosen & moving].square().mean().sqrt().item()
    assert mixed == 2
    row = rows(folder)[-1]
    assert row["step"] == 5
    assert by_time(row) == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) > 0


def test_what_a_run_writes(straight):
    folder, summary = straight
    logged = rows(folder)
    assert [row["step"] for row in logged] == [2, 4]
    for row in logged:
        assert {name.split("/")[0] for name in by_time(row)} == {"loss_u", "loss_v", "du_dt"}
        assert row["grad_norm"] > 0
        assert row["skipped_steps"] == 0
        assert all(value > 0 for name, value in by_time(row).items() if name.startswith("loss"))
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert header.startswith("step,images,loss_u,loss_v")
    assert "loss_u/t0.8-1" in header.split(",")
    assert summary["time_bins"] == str(folder / "time_bins.png")
    assert Image.open(folder / "time_bins.png").size[0] > Image.open(folder / "curves.png").size[0]


def test_the_bar_stays_short_and_time_counts_from_the_beginning_of_the_run(tmp_path, capfd):
    begun = time.perf_counter()
    summary = run(tmp_path, "steps=2")
    assert 0 < summary["wall_seconds"] <= time.perf_counter() - begun + 0.05
    error = capfd.readouterr().err
    assert "loss_u=" in error
    assert "/t0" not in error
    assert "grad_norm" not in error


@pytest.mark.slow
def test_a_row_is_a_mean_over_the_window_and_its_micro_batches(tmp_path):
    """At a learning rate of 0 steps and micro-batches are parts of one large batch."""
    still = ["optimizer.lr=0", "steps=2"]
    run(tmp_path / "window", *still, "log_every_steps=2", "micro_batch=4")
    run(tmp_path / "steps", *still)
    window, steps = rows(tmp_path / "window")[0], rows(tmp_path / "steps")
    assert by_time(window).keys() == {name for row in steps for name in by_time(row)}
    module = load_checkpoint(tmp_path / "steps", "raw")
    blank = Batch(torch.zeros(16, 1, 32, 32), torch.zeros(16, dtype=torch.long))
    times = [module.objective.draw(blank, seed=0, step=step).t for step in (0, 1)]
    for name in (name for name in by_time(window) if name.startswith("loss")):
        low, high = map(float, name.split("/t")[1].split("-"))
        counts = [int(((low <= t) & (t < high)).sum()) for t in times]
        expected = sum(count * row.get(name, 0) for count, row in zip(counts, steps, strict=True)) / sum(counts)
        assert window[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_window_goes_on_after_a_stop(straight, tmp_path):
    run(tmp_path, "steps=3", "log_every_steps=2")
    run(tmp_path, "steps=4", "log_every_steps=2", "ckpt=last")
    mine, theirs = rows(tmp_path), rows(straight[0])
    for row in mine + theirs:
        row.pop("images_per_second", None)
    assert mine == theirs


def test_other_bins_after_a_stop(tmp_path):
    run(tmp_path, "steps=1", "log_every_steps=2")
    run(tmp_path, "steps=2", "log_every_steps=2", "ckpt=last", "diagnostics.t_bins=1")
    assert by_time(rows(tmp_path)[0]).keys() == {"loss_u/t0-1", "loss_v/t0-1", "du_dt/t0-1"}


def test_rows_of_one_step_are_one_row(tmp_path):
    ledger = JSONLLogger(tmp_path, batch=8, first_step=0)
    ledger.log_metrics({"fd_digits": 1.5}, 0)
    ledger.log_metrics({"loss_u/t0-1": math.nan}, 0)
    ledger.log_metrics({"loss_u": 2.0, "epoch": 0}, 0)
    ledger.log_metrics({"loss_u": 3.125}, 1)
    ledger.log_metrics({"loss_u": 3.0}, 1)  # a shorter line leaves nothing of the longer one
    first = {"step": 1, "images": 8, "loss_u": 2.0, "loss_u/t0-1": None, "fd_digits": 1.5}
    assert rows(tmp_path) == [first, {"step": 2, "images": 16, "loss_u": 3.0}]
    assert list(rows(tmp_path)[0])[2] == "loss_u"
    again = JSONLLogger(tmp_path, batch=8, first_step=1)
    again.log_metrics({"loss_u": 4.0}, 1)
    assert rows(tmp_path) == [first, {"step": 2, "images": 16, "loss_u": 4.0}]


def test_picture_of_a_log_with_gaps(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "images": 8, "loss_u": 1.0}\n')
    assert save_time_bins(log, tmp_path / "none.png") is None
    lines = [{"images": n, "loss_u/t0-0.5": n, "loss_u/t0.5-1": None if n == 16 else 1.0} for n in (8, 16, 24)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert save_time_bins(log, tmp_path / "time_bins.png") == tmp_path / "time_bins.png"
    assert Image.open(tmp_path / "time_bins.png").size[0] > 800
