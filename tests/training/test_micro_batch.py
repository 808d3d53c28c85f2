"""Defaults that use the machine: precision, loading processes, and the micro-batch that fits the memory."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from kept import assert_same
from lightning import LightningModule, Trainer
from shrunk import RUN

from pmf_lightning import UserError, build, compose
from pmf_lightning.commands import train
from pmf_lightning.commands.train import memory_of_a_step
from pmf_lightning.config import validate
from pmf_lightning.data.datamodule import ImageData
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.data.sources.shapes.source import Shapes
from pmf_lightning.training import prepare
from pmf_lightning.training.callbacks import micro_batch
from pmf_lightning.training.callbacks.micro_batch import CountedMemory, MicroBatch
from pmf_lightning.training.prepare import Parts, loading_processes
from pmf_lightning.training.trainer import make_trainer
from pmf_lightning.utils.rng import BatchRows

MEMORY = CountedMemory(gradients=100, optimizer=100, update=50, per_image=100.0)
SOURCE = Shapes("shapes", 16, 3, 10, 64, 10)


def device(kind, world_size=1, theirs=1):
    """A trainer on a device of that kind; each of the others chooses ``theirs``."""
    trainer = Mock(spec=Trainer, world_size=world_size, accumulate_grad_batches=1, precision_plugin=None)

    def reduce(mine, reduce_op):
        return {"max": torch.maximum, "min": torch.minimum}[reduce_op](mine, mine.sign() * theirs)

    trainer.strategy = SimpleNamespace(root_device=torch.device(kind), reduce=reduce)
    return trainer


def chosen(free, monkeypatch, kind="cpu", largest=64):
    """The micro-batch of 24 images with ``free`` bytes, on a device that can process the ``largest`` in truth."""
    monkeypatch.setattr(micro_batch, "free_bytes", lambda trainer: free)
    tried = []

    def trial(self, trainer, module, size):
        tried.append(size)
        if size > largest:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(MicroBatch, "_trial", trial)
    data = ImageData(SOURCE, 0, 24, None, 0)
    trainer = device(kind)
    MicroBatch(data, MEMORY).on_fit_start(trainer, Mock(spec=LightningModule))
    assert trainer.accumulate_grad_batches * data.micro_batch == 24
    return data.micro_batch, tried


@pytest.mark.parametrize(("free", "size"), [(10_000, 24), (2000, 12), (1479, 12), (1473, 8), (316, 1)])
def test_the_largest_divisor_whose_memory_is_free(free, size, monkeypatch, capsys):
    assert chosen(free, monkeypatch) == (size, [])
    assert f"micro_batch=auto: {size} of the 24 images of a device at once (counted: " in capsys.readouterr().out


@pytest.mark.parametrize(("theirs", "size"), [(100, 12), (4, 4)])
def test_devices_share_the_batch_and_take_the_smallest_choice(theirs, size, monkeypatch):
    monkeypatch.setattr(micro_batch, "free_bytes", lambda trainer: 10_000)
    data, trainer = ImageData(SOURCE, 0, 24, None, 0), device("cpu", 2, theirs)
    MicroBatch(data, MEMORY).on_fit_start(trainer, Mock(spec=LightningModule))
    assert (data.micro_batch, trainer.accumulate_grad_batches) == (size, 12 // size)


def test_the_peak_is_that_of_the_update_where_it_takes_more_than_a_pass():
    assert (replace(MEMORY, update=1000).of(3), MEMORY.of(3)) == (200 + 1000, 200 + 300)


@pytest.mark.parametrize(("free", "largest", "tried"), [(10_000, 30, [24]), (10_000, 7, [24, 12, 6]), (10, 1, [1])])
def test_a_trial_step_on_a_gpu_halves_what_is_out_of_memory(free, largest, tried, monkeypatch, capsys):
    assert chosen(free, monkeypatch, "cuda", largest) == (tried[-1], tried)
    assert "a trial step fitted" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "words"), [("cpu", "one image at once needs about 3e-07 GB"), ("cuda", "a trial")])
def test_a_model_that_is_too_large_is_one_line_before_work(kind, words, monkeypatch):
    with pytest.raises(UserError, match=f"micro_batch=auto: {words}.*trainer=fsdp"):
        chosen(300, monkeypatch, kind, largest=0)


def test_the_trial_leaves_no_trace():
    module = build(compose(RUN))
    data = ImageData(SOURCE, 0, 16, None, 0)
    weights = {name: value.clone() for name, value in module.network.state_dict().items()}
    numbers = torch.random.get_rng_state()
    MicroBatch(data, MEMORY)._trial(device("cpu"), module, 4)
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert all(weight.grad is None for weight in module.network.parameters())
    assert_same(module.network.state_dict(), weights)


@pytest.mark.slow
def test_it_changes_the_memory_alone(tmp_path, monkeypatch, capsys):
    """What auto chooses trains as the same number does, bit for bit, and as the whole batch does up to rounding."""
    monkeypatch.setattr(micro_batch, "free_memory", lambda: 5_000_000)
    kept, run = {}, prepare.prepare
    monkeypatch.setattr(train, "prepare", lambda *args, **more: kept.setdefault("parts", run(*args, **more)))
    found = {}
    for name in ("auto", "8", "null"):
        kept.clear()
        options = [*RUN, f"run_dir={tmp_path / name}", "steps=2", "sample_grid.enabled=false"]
        train.run(compose([*options, f"micro_batch={name}"]))
        found[name] = kept["parts"].module.network.state_dict()
    said = capsys.readouterr().out
    assert "memory of a device: " in said
    assert "micro_batch=auto: 8 of the 16 images" in said
    assert_same(found["auto"], found["8"])
    for name, value in found["null"].items():
        torch.testing.assert_close(found["auto"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_may_choose_another_number(tmp_path, monkeypatch):
    """Steps, images and random numbers go on, also where a step would end in the middle of the stored micro-batches."""
    options = [*RUN, "sample_grid.enabled=false", "batch=12", "micro_batch=auto", "schedule.decay_fraction=0"]
    found = {}
    for sizes in ((12, 12), (4, 3), (6, 12)):  # (4, 3): 9 micro-batches are stored, and a step has 4 now
        folder = tmp_path / str(sizes)
        for steps, size in zip((3, 5), sizes, strict=True):
            monkeypatch.setattr(MicroBatch, "_by_count", lambda *_, size=size: size)
            train.run(compose([*options, f"run_dir={folder}", f"steps={steps}", "ckpt=auto"]))
        found[sizes] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert found[sizes]["global_step"] == 5
    for sizes in ((4, 3), (6, 12)):
        for name, value in found[12, 12]["state_dict"].items():
            torch.testing.assert_close(found[sizes]["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def test_a_large_network_names_the_memory_that_it_needs(monkeypatch, capsys):
    cfg = compose(RUN)
    parts = Mock(spec=Parts, module=build(cfg), source=SOURCE, data=ImageData(SOURCE, 0, 16, None, 0))
    assert memory_of_a_step(cfg, parts) is None
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(train, "LARGE", 1)
    monkeypatch.setattr(train, "free_memory", lambda: 1_000_000)
    assert memory_of_a_step(cfg, parts) is None
    line = capsys.readouterr().out
    assert "16 images at once x" in line
    assert "; 0.001 GB are free: try micro_batch=auto" in line


def test_what_cannot_be_counted_or_has_other_batches_takes_all_images(monkeypatch, capsys):
    cfg = compose([*RUN, "micro_batch=auto"])
    parts = Mock(spec=Parts, module=build(cfg), source=SOURCE, data=ImageData(SOURCE, 0, 16, None, 0))
    monkeypatch.setattr(train, "count_memory", Mock(side_effect=TypeError("no shape")))
    assert memory_of_a_step(cfg, parts) is None
    said = "memory: not counted (no shape); micro_batch=auto takes all images of a device at once"
    assert said in capsys.readouterr().out
    parts.module.objective = Mock(data="labels", needs_global_batch=False)
    assert memory_of_a_step(cfg, parts) is None
    assert capsys.readouterr().out == ""


def test_defaults_follow_the_accelerator():
    def defaults(*overrides):
        cfg = compose(list(overrides))
        return cfg.trainer.precision, cfg.micro_batch, cfg.posttrain and cfg.posttrain.micro_batch

    assert defaults() == defaults("trainer=ddp", "trainer.accelerator=cpu") == ("32-true", None, None)
    for kind in ("gpu", "fsdp"):
        assert defaults(f"trainer={kind}", "posttrain=fd_loss") == ("bf16-mixed", "auto", None)
    assert defaults("trainer=gpu", "posttrain=fd_loss", "micro_batch=8") == ("bf16-mixed", 8, 8)


def test_loading_processes_follow_cores_devices_and_data(monkeypatch):
    cfg = compose(["trainer=ddp", "trainer.devices=2"])
    for cores, count in ((32, 8), (8, 3), (2, 1), (1, 1)):
        monkeypatch.setattr(prepare, "all_cores", lambda cores=cores: cores)
        assert loading_processes(cfg, SOURCE) == count
    monkeypatch.setattr(prepare, "srun_tasks", lambda: 2)  # each task may use its own cores alone
    monkeypatch.setattr(prepare.os, "cpu_count", lambda: 16)
    for cores, count in ((6, 5), (16, 7)):  # of 16, the cores of both
        monkeypatch.setattr(prepare, "all_cores", lambda cores=cores: cores)
        assert loading_processes(cfg, SOURCE) == count
    monkeypatch.setattr(prepare, "all_cores", lambda: 32)
    assert loading_processes(cfg, Digits("digits", 32, 1, 10, 360)) == 0
    assert loading_processes(compose([]), SOURCE) == 0  # the cores train
    assert loading_processes(compose(["num_workers=5"]), SOURCE) == 5


def test_labels_are_drawn_with_the_weights_of_the_objective():
    law = Mock(data="labels", class_weights=[0, 1, *[0] * 8], images_per_label=1)
    data = prepare.make_data(compose(RUN), SOURCE, law)
    assert torch.cat(next(data.stream((BatchRows(),), 0))).tolist() == [1] * 16


def test_products_have_the_precision_of_the_run(tmp_path):
    settings = prepare.training_settings(compose([*RUN, "matmul_precision=medium"]))
    parts = Mock(spec=Parts, settings=settings, data=ImageData(SOURCE, 0, 16, 4, 0))
    before = torch.get_float32_matmul_precision()
    try:
        assert make_trainer(parts, tmp_path, [], []).accumulate_grad_batches == 4
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UserError, match=r"trainer.precision=bf16-mixed: .*; set trainer.precision=32-true"):
        validate.training(compose(["trainer=gpu"]))
    validate.training(compose(["trainer=gpu", "trainer.precision=32-true"]))


@pytest.mark.parametrize(
    ("gpu", "wanted"), [(True, ("gpu", "bf16-mixed", "auto")), (False, ("cpu", "32-true", None))], ids=["gpu", "cpu"]
)
def test_accelerator_auto_is_the_gpu_where_there_is_one_also_for_what_follows_it(gpu, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    given = compose(["trainer.accelerator=auto"])
    cfg = validate.settle_accelerator(given)
    assert (cfg.trainer.accelerator, cfg.trainer.precision, cfg.micro_batch) == wanted
    assert given.trainer.accelerator == "auto"


def test_sharded_weights_need_a_share_of_gradients_and_moments(monkeypatch):
    monkeypatch.setattr(micro_batch, "FullySharded", SimpleNamespace)
    needed = MicroBatch(ImageData(SOURCE, 0, 24, None, 0), replace(MEMORY, update=0))._needed(3, device("cpu", 4))
    assert needed == 3 * 100 + 200 / 4 + 100  # activations, a quarter of both, and the gathered weights
