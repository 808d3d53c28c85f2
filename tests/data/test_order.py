import multiprocessing
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from pmf_lightning.data import loader
from pmf_lightning.data.datamodule import ImageData
from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase, Rows
from pmf_lightning.data.order import GlobalOrder, micro_batch_indices, step_shards
from pmf_lightning.data.queues.datamodule import QueueData
from pmf_lightning.data.queues.settings import QueueSettings
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.rng import BatchRows

IMAGES = 20


class Numbered(DataSourceBase):
    """A source whose image i shows the number i."""

    name, resolution, channels, classes = "numbered", 2, 1, 3

    def check(self):
        pass

    def train(self):
        numbers = torch.arange(IMAGES)
        return ArrayDataset(numbers.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2), numbers % 3)

    def held_out(self):
        return self.train()

    def fingerprint(self):
        return "numbered"


class AllHeldOut(Numbered):
    """A source whose images are all held out."""

    held_out_fraction = 0.6

    def train(self):
        return Rows(super().train(), torch.arange(0))


class Recorder(LightningModule):
    """Trains one weight and writes down which images it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert torch.equal(images[:, 0, 0, 0] % 3, labels)
        self.seen.append((self.global_step, images[:, 0, 0, 0].tolist()))
        return self.weight * images.float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, data, steps, ckpt_path=None, **options):
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=data.accumulation(1),
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    assert not [text for w in caught if "not resumable" in (text := str(w.message)) or "IterableDataset" in text]
    return module.seen


def global_batch(world_size, micro_batches, step, images=IMAGES, batch=12, seed=5):
    """Put the micro-batches of all ranks back where they belong."""
    whole = [None] * batch
    for rank in range(world_size):
        for shard in step_shards(rank, world_size, micro_batches):
            indices = micro_batch_indices(images, batch, seed, step, shard)
            for position, index in zip(shard.rows(len(indices)).tolist(), indices, strict=True):
                assert whole[position] is None
                whole[position] = index
    return whole


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (1, 2), (2, 2), (3, 4)])
def test_devices_and_micro_batches_deal_out_the_same_global_batch(world_size, micro_batches):
    for step in (0, 1, 7):
        assert global_batch(world_size, micro_batches, step) == global_batch(1, 1, step)


@pytest.mark.parametrize(("images", "batch"), [(20, 12), (7, 7), (5, 12), (12, 5)])
def test_every_epoch_shows_every_image_once_without_a_gap(images, batch):
    steps = range(-(-4 * images // batch))
    stream = [i for step in steps for i in micro_batch_indices(images, batch, 0, step, BatchRows())]
    epochs = [stream[start : start + images] for start in range(0, 4 * images, images)]
    assert all(sorted(epoch) == list(range(images)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_the_seed_and_is_pinned():
    assert global_batch(1, 1, 0, seed=5) != global_batch(1, 1, 0, seed=6)
    # a checkpoint of an earlier version resumes on the same images only while these numbers stay
    assert micro_batch_indices(10, 5, 0, 1, BatchRows()) == [9, 3, 6, 0, 1]


def test_sampler_starts_at_any_step():
    shards = step_shards(rank=1, world_size=2, micro_batches=2)
    early, late = (iter(GlobalOrder(IMAGES, 12, 3, shards, first_step=step)) for step in (0, 4))
    skipped = [next(early) for _ in range(4 * 2)]
    assert len(skipped[0]) == 3
    assert [next(early) for _ in range(6)] == [next(late) for _ in range(6)]


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch of 10"):
        micro_batch_indices(IMAGES, 10, 0, 0, BatchRows(0, 3))


@pytest.mark.parametrize(
    ("num_workers", "micro_batch", "options"),
    [(0, None, {}), (0, 4, {}), (2, 4, {}), (0, 4, {"limit_train_batches": 6}), (2, None, {"limit_train_batches": 3})],
)
def test_resume_sees_exactly_the_images_of_an_unbroken_run(tmp_path, num_workers, micro_batch, options):
    def data():
        return ImageData(Numbered(), seed=5, batch=8, micro_batch=micro_batch, num_workers=num_workers)

    straight = fit(tmp_path / "straight", data(), 10, **options)
    before = fit(tmp_path / "broken", data(), 4, **options)
    after = fit(tmp_path / "broken", data(), 10, ckpt_path=tmp_path / "broken" / "last.ckpt", **options)
    assert before + after == straight
    shards = step_shards(0, 1, data().accumulation(1))
    assert straight == [(s, micro_batch_indices(IMAGES, 8, 5, s, shard)) for s in range(10) for shard in shards]


class Interrupted(Recorder):
    """Stops inside its third step, with one of three micro-batches done, as Ctrl-C or an error would."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.how != "error" and len(self.seen) == 7:
            self.trainer.should_stop = True
        if self.how == "error" and len(self.seen) == 8:
            self.trainer.save_checkpoint(self.checkpoint)
            raise RuntimeError("interrupted")
        return loss

    def on_train_batch_end(self, *_):
        if self.how == "batch end" and self.trainer.should_stop:
            self.trainer.save_checkpoint(self.checkpoint)

    def on_train_end(self):
        if self.how == "train end":
            self.trainer.save_checkpoint(self.checkpoint)


@pytest.mark.parametrize("how", ["error", "batch end", "train end"])
def test_checkpoint_within_a_step_resumes_at_its_beginning(tmp_path, how):
    def trainer():
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=6,
            max_epochs=-1,
            accumulate_grad_batches=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def data():
        return ImageData(Numbered(), seed=5, batch=12, micro_batch=4, num_workers=0)

    straight, broken, resumed = Recorder(), Interrupted(how), Recorder()
    trainer().fit(straight, datamodule=data())
    broken.checkpoint = tmp_path / "stopped.ckpt"
    if how == "error":
        with pytest.raises(RuntimeError, match="interrupted"):
            trainer().fit(broken, datamodule=data())
    else:
        trainer().fit(broken, datamodule=data())
    trainer().fit(resumed, datamodule=data(), ckpt_path=broken.checkpoint)
    assert broken.seen == straight.seen[: 8 if how == "error" else 7]
    assert resumed.seen == straight.seen[6:]
    assert torch.equal(resumed.weight, straight.weight)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(num_workers):
    data = ImageData(Numbered(), seed=5, batch=8, micro_batch=4, num_workers=num_workers)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=3, accumulate_grad_batches=2)
    before = torch.get_rng_state(), str(np.random.get_state())  # beartype itself draws from Python's
    stream = iter(data.train_dataloader())
    images, labels = next(stream)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())
    assert images.shape == (4, 1, 2, 2)
    assert images[:, 0, 0, 0].tolist() == micro_batch_indices(IMAGES, 8, 5, 3, BatchRows(0, 2))
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=str)
def test_a_signal_to_all_processes_does_not_end_those_that_load(number, monkeypatch, tmp_path):
    """As Ctrl-C, timeout and SLURM send it: the run needs the rest of its step, and ends them itself."""
    begin, sent = loader.ignore_stop_signals, tmp_path / "sent"

    def late(worker):
        while worker == 1 and not sent.exists():  # the second one meets the signal before it is ready
            time.sleep(0.01)
        begin(worker)

    monkeypatch.setattr(loader, "ignore_stop_signals", late)
    data = ImageData(Numbered(), seed=5, batch=8, micro_batch=2, num_workers=2)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0, accumulate_grad_batches=4)
    others = set(multiprocessing.active_children())
    stream = iter(data.train_dataloader())
    next(stream)
    loading = set(multiprocessing.active_children()) - others
    assert len(loading) == 2
    sender = "import os, sys; [os.kill(int(pid), int(sys.argv[1])) for pid in sys.argv[2:]]"
    pids = [str(process.pid) for process in loading]
    subprocess.run([sys.executable, "-c", sender, str(int(number)), *pids], check=True)
    sent.touch()
    seen = [next(stream)[0][:, 0, 0, 0].tolist() for _ in range(11)]
    assert seen == [micro_batch_indices(IMAGES, 8, 5, i // 4, BatchRows(i % 4, 4)) for i in range(1, 12)]
    del stream
    for process in loading:
        process.terminate()  # as at the exit of a run that broke off
        process.join(timeout=600)
        assert process.exitcode == 0


def test_second_rank_loads_its_own_share():
    data = ImageData(Numbered(), seed=5, batch=8, micro_batch=2, num_workers=0)
    data.trainer = SimpleNamespace(world_size=2, global_rank=1, global_step=0, accumulate_grad_batches=2)
    stream = iter(data.train_dataloader())
    shown = [next(stream)[0][:, 0, 0, 0].tolist() for _ in range(4)]
    assert shown == [
        micro_batch_indices(IMAGES, 8, 5, step, BatchRows(j * 2 + 1, 4)) for step in (0, 1) for j in (0, 1)
    ]


def test_accumulation():
    def data(batch, micro_batch):
        return ImageData(Numbered(), seed=0, batch=batch, micro_batch=micro_batch, num_workers=0)

    assert data(64, None).accumulation(4) == 1
    assert data(64, 8).accumulation(4) == 2
    with pytest.raises(UserError, match=r"batch=100 does not divide over 8 devices: set batch=96 or batch=104"):
        data(100, None).accumulation(8)
    with pytest.raises(UserError, match=r"batch=3 does not divide over 8 devices: set batch=8$"):
        data(3, None).accumulation(8)
    with pytest.raises(
        UserError, match=r"micro_batch=12 .* 64 .*batch=64, devices=1.* micro_batch=8 or micro_batch=16"
    ):
        data(64, 12).accumulation(1)
    with pytest.raises(UserError, match=r"micro_batch=128 .* set micro_batch=64$"):
        data(64, 128).accumulation(1)
    with pytest.raises(UserError, match=r"batch=0"):
        data(0, None)
    with pytest.raises(UserError, match=r"num_workers=-1"):
        ImageData(Numbered(), seed=0, batch=8, micro_batch=None, num_workers=-1)


def test_trainer_that_accumulates_otherwise_is_refused():
    data = ImageData(Numbered(), seed=0, batch=8, micro_batch=4, num_workers=0)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0, accumulate_grad_batches=1)
    with pytest.raises(UserError, match=r"accumulate_grad_batches=1 .* set it to 2"):
        data.train_dataloader()


@pytest.mark.parametrize(
    "data",
    [
        ImageData(AllHeldOut(), seed=5, batch=8, micro_batch=None, num_workers=0),
        QueueData(AllHeldOut(), 5, QueueSettings(2, 1, 1, 2, 4, 4, None), num_workers=0),
    ],
)
def test_data_without_a_training_image_are_one_line(data):
    with pytest.raises(
        UserError, match=r"^data.held_out_fraction=0.6: it leaves no image for training; lower .*class$"
    ):
        data.prepare_data()
    data.trainer = SimpleNamespace(world_size=1, num_nodes=1, global_rank=0, global_step=0, accumulate_grad_batches=1)
    with pytest.raises(UserError, match=r"no image for training"):
        data.train_dataloader()
