"""The commands as a user meets them: help, results, and one line for bad input."""

import errno
import json
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from shrunk import RUN

from pmf_lightning import UserError, compose, load_checkpoint
from pmf_lightning.benchmark import main as benchmark_main
from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.pipeline.images import draw
from pmf_lightning.sample import main as sample_main
from pmf_lightning.sampling.generate import numbered_images
from pmf_lightning.train import main as train_main
from pmf_lightning.train import train

MAINS = {"train": train_main, "sample": sample_main, "benchmark": benchmark_main}


@pytest.fixture
def call(call_command):
    """Call a command in an empty folder; return (exit status, stdout, stderr)."""
    return lambda name, *arguments: call_command(MAINS[name], *arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose([*RUN, "steps=2", f"run_dir={folder}"]))
    return folder


@pytest.mark.parametrize("name", sorted(MAINS))
def test_help_names_choices_and_examples(call, name):
    status, output, _ = call(name, "--help")
    assert status == 0
    assert f"python -m pmf_lightning.{name}" in output
    if name == "train":
        assert "pmf_h16" in output
        assert "imagenet512" in output


@pytest.mark.slow
def test_sample_writes_grid_and_arrays(call, trained, tmp_path):
    wanted = ["classes=[3,7]", "n=7", "omega=2", "steps=2", "batch_size=4", "out=pictures"]
    status, output, _ = call("sample", f"ckpt={trained}", *wanted)
    assert status == 0
    assert "pictures/samples.npz" in output
    with np.load(tmp_path / "pictures" / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (7, 32, 32, 1)
    assert images.dtype == np.uint8
    assert labels.tolist() == [3, 7, 3, 7, 3, 7, 3]
    assert Image.open(tmp_path / "pictures" / "grid.png").size[0] > 7 * 64
    assert call("sample", f"ckpt={trained}", *wanted[:-2], "batch_size=7", "out=again")[0] == 0
    with np.load(tmp_path / "again" / "samples.npz") as arrays:
        assert np.abs(arrays["arr_0"].astype(int) - images.astype(int)).max() <= 1  # chunks change rounding only


@pytest.mark.parametrize(
    ("name", "arguments", "there", "named"),
    [
        ("sample", ["ckpt=.", "out=made"], "made/samples.npz", "out=made: made/samples.npz exists"),
        ("evaluate", ["images=x", "out=made"], "made/evaluation.json", "out=made: made/evaluation.json exists"),
        ("make_stats", ["data=digits", "n=2", "out=s.npz"], "s.pkl", "out=s.npz: s.pkl exists"),
        (
            "make_stats",
            ["data=digits", "battery=digits", "out=m"],
            "m/reference.json",
            "out=m: m/reference.json exists",
        ),
        ("benchmark", ["what=step", "out=speed.json"], "speed.json", "out=speed.json: exists"),
    ],
)
def test_no_command_replaces_results_unless_told_to(call_command, tmp_path, monkeypatch, name, arguments, there, named):
    command = import_module(f"pmf_lightning.{name}").main
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("older")
    status, _, printed = call_command(command, *arguments)
    assert (status, len(printed.splitlines())) == (2, 1)
    assert f"{named} already; set another out, or force=true to replace it" in printed
    assert (tmp_path / there).read_text() == "older"
    work = import_module(f"pmf_lightning.commands.{name}")
    monkeypatch.setattr(work, "writable", lambda folder, key: sys.exit(f"{key} may be written"))
    assert call_command(command, *arguments, "force=true")[0] == "out may be written"


@pytest.mark.parametrize(("name", "given"), [("sample", "ckpt=."), ("evaluate", "images=x")])
def test_the_default_folder_holds_the_results_of_the_last_command(call_command, tmp_path, monkeypatch, name, given):
    work = import_module(f"pmf_lightning.commands.{name}")
    monkeypatch.setattr(work, "writable", lambda folder, key: sys.exit(f"{key} may be written"))
    (tmp_path / work.LATEST).mkdir()
    (tmp_path / work.LATEST / "grid.png").write_text("older")
    assert call_command(import_module(f"pmf_lightning.{name}").main, given)[0] == "out may be written"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "samples/grid.png"), ["samples/grid.png: there is no room left"]),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"),
            ["allocate 2 GiB;", "batch_size="],
        ),
    ],
)
def test_a_machine_that_runs_out_is_one_line(call, monkeypatch, error, words):
    def fail(cfg):
        raise error

    monkeypatch.setattr("pmf_lightning.sample.sample", fail)
    status, _, printed = call("sample", "ckpt=.")
    assert status == 1
    assert len(printed.splitlines()) == 1
    for word in ["error: ", *words]:
        assert word in printed


def test_weights_that_diverged_are_named(trained, monkeypatch):
    """By the number among all images, not in their batch: the second image of the second batch is image 3."""
    module, decoded = load_checkpoint(trained), []

    def to_pixels(z):
        decoded.append(len(z))
        bad = torch.arange(len(z))[:, None, None, None] == 1
        return z.where(~bad, torch.nan) if len(decoded) == 2 else z

    monkeypatch.setattr(module, "to_pixels", to_pixels)
    with pytest.raises(UserError, match="image 3 has values that are not finite"):
        draw(module, torch.tensor([1, 2, 3, 4, 5]), 0, 2, {"steps": 1})
    assert decoded == [2, 2]


def test_images_wait_for_the_file_as_levels(trained):
    module, labels = load_checkpoint(trained), torch.tensor([3, 7, 3])
    found = draw(module, labels, 5, 2, {"steps": 1})
    assert found.dtype == torch.uint8  # 50,000 of 256 pixels as floats would not fit into most memories
    for part in (slice(0, 2), slice(2, 3)):
        assert torch.equal(found[part], to_uint8(numbered_images(module, labels[part], 5, part.start)))


def test_benchmark_prints_the_ratio(call, tmp_path):
    status, output, _ = call("benchmark", *RUN, "repeats=1", "out=speed.json")
    assert status == 0
    assert "torch.optim.Muon" in output
    assert json.loads((tmp_path / "speed.json").read_text())["muon"]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=pmf_b61"], ["model=pmf_b61", "pmf_b16"]),
        (["data=digit"], ["data=digit", "digits"]),
        (["-m", "model=pmf_b61,pmf_b16"], ["model=pmf_b61", "pmf_b16"]),
        (["data.resolution=30"], ["data.resolution=30", "backbone.patch=8"]),
        (["sampling.omega=0.5"], ["sampling.omega=0.5"]),
        (["sampling.t_min=0.8", "sampling.t_max=0.2"], ["t_min=0.8", "t_max=0.2"]),
        (["sampling.ema=9k"], ["sampling.ema=9k", "4k"]),
        (["sampling.steps=0"], ["sampling.steps=0"]),
        (["trainer=gpu"], ["trainer.accelerator=gpu", "trainer=cpu"]),
        (["data=imagenet256"], ["imagenet256", "data.root"]),
        (["data=folder"], ["data.root"]),
        (["data=folder", "data.root=nowhere"], ["nowhere"]),
        (["data=folder", "data.root=."], ["class"]),
        (["ckpt=nowhere.ckpt"], ["ckpt=nowhere.ckpt", "no such file"]),
        (["ckpt=last"], ["ckpt=last"]),
        (["run_dir=/proc/nowhere"], ["run_dir=/proc/nowhere", "cannot be written"]),
        (["batch=10", "micro_batch=4"], ["micro_batch=4", "micro_batch=5"]),
        (["batch=0"], ["batch"]),
        (["steps=0"], ["steps=0"]),
        (["log_every_steps=often"], ["log_every_steps=often", "integer"]),
        (["trainer.precision=16-mixed"], ["trainer.precision=16-mixed", "32-true or bf16-mixed"]),
        (["matmul_precision=hihg"], ["matmul_precision=hihg", "did you mean high"]),
        (["lr=3"], ["lr"]),
        (["optimizer.lr=-1"], ["lr", "-1"]),
        (["objective.prediction=y"], ["objective", "prediction=y", "x, u"]),
        (["objective.jvp=three_pass"], ["objective", "jvp=three_pass", "one_pass"]),
        (["backbone.width=30"], ["width 30"]),
        (["model="], ["model="]),
    ],
    ids=" ".join,
)
def test_bad_input_of_train_is_one_line(call, arguments, words):
    if "trainer=gpu" in arguments and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    status, output, errors = call("train", *arguments)
    assert status == 2
    assert "step/s" not in errors + output, "work had begun"
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in errors
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classes=[10]"], ["10", "0 to 9"]),
        (["classes=[-1]"], ["-1", "0 to 9"]),
        (["classes=[]"], ["classes=[]"]),
        (["classes=3"], ["classes=3", "classes=[3]"]),
        (["classes=[a]"], ["classes=a", "no class names", "0 to 9"]),
        (["omega=[1,2]"], ["omega=[1, 2]", "give one number"]),
        (["omega=many"], ["omega=many", "give one number"]),
        (["omega=nan"], ["omega=nan"]),
        (["steps=1.5"], ["steps=1.5", "give one integer"]),
        (["n=0"], ["n=0"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["steps=0"], ["steps=0"]),
        (["omega=0.9"], ["omega=0.9"]),
        (["t_min=0.9", "t_max=0.1"], ["t_min=0.9"]),
        (["ema=7k"], ["ema=7k", "2k"]),
        (["out=/proc/nowhere"], ["out=/proc/nowhere"]),
        (["ckpt=nowhere"], ["ckpt=nowhere"]),
        (["ckpt=foreign.ckpt"], ["foreign.ckpt", "not a checkpoint of pmf_lightning"]),
        (["ckpt=text.ckpt"], ["text.ckpt", "cannot be read"]),
        (["ckpt=."], ["ckpt=.", "no checkpoints/last.ckpt"]),
        (["device=cuda"], ["device=cuda"]),
        (["device=toaster"], ["device=toaster"]),
        (["klasses=[1]"], ["klasses"]),
    ],
    ids=" ".join,
)
def test_bad_input_of_sample_is_one_line(call, trained, tmp_path, arguments, words):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    if not any(argument.startswith("ckpt=") for argument in arguments):
        arguments = [*arguments, f"ckpt={trained}"]
    status, _, errors = call("sample", *arguments)
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in errors
    for word in words:
        assert word in lines[0]
    assert not (tmp_path / "samples").exists()


def test_sample_needs_a_checkpoint(call):
    status, _, errors = call("sample")
    assert status == 2
    assert "ckpt" in errors


def test_unknown_benchmark(call):
    status, _, errors = call("benchmark", "what=lunch")
    assert status == 2
    assert "what=lunch" in errors


@pytest.mark.slow
def test_multirun_gives_each_job_its_own_folder(call, tmp_path):
    status, _, errors = call("train", *RUN, "steps=1", "seed=0,1", "-m")
    assert status == 0, errors
    found = sorted((tmp_path / "runs").glob("*/*/summary.json"))
    assert len(found) == 2
