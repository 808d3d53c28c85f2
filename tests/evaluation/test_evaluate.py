"""The command that judges: what it writes, that it is the same on two processes, and one line for bad input."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from features_of_tests import noise_levels, write_pngs
from PIL import Image
from processes import python
from shrunk import RUN
from test_latents import checkpoint, folder, latent_overrides, vae  # noqa: F401 - fixtures of a latent model

from pmf_lightning import UserError, build, compose, load_checkpoint
from pmf_lightning.convert import convert
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.evaluate import evaluate
from pmf_lightning.evaluate import main as evaluate_main
from pmf_lightning.evaluation.sample_sources import evaluator_of
from pmf_lightning.make_stats import main as make_stats_main
from pmf_lightning.sample import sample
from pmf_lightning.train import train
from pmf_lightning.utils.cache import file_sha256

CLASSIFIER = ["extractor=classifier", "extractor.settings.steps=3", "protocol.kid_subsets=4"]
MEANS = [
    *("extractor=module", "extractor.name=means", "extractor.features=4"),
    "extractor.module={_target_: features_of_tests.Quarters}",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    train(compose([*RUN, "steps=2", f"run_dir={path}"]))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def judge(cache, tmp_path):
    """Evaluate with the classifier, beside the training split of digits."""

    def run(*arguments, parts=CLASSIFIER):
        shared = [*parts, f"cache_dir={cache}", f"out={tmp_path}/out", "force=true"]
        return evaluate(compose([*shared, *arguments], "evaluate"))

    return run


# What comes out


@pytest.mark.slow
def test_a_checkpoint_is_judged_and_everything_is_written_down(judge, trained, tmp_path):
    asked = ["reference=data", "n=24", "seed=5", "omega=2", "t_max=0.9", "ema=1k", "batch_size=10"]
    report = judge(f"ckpt={trained}", *asked)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert written["metric"] == "fd24_classifier_jit"
    assert written["scores"]["fd24_classifier_jit"] == written["fid"] > 0
    assert {"is24_classifier_jit", "kd24_classifier_jit", "precision24_classifier_jit"} < set(written["scores"])
    assert written["checkpoint_sha256"] == file_sha256(trained / "checkpoints" / "last.ckpt")
    judged = {
        name: written[name] for name in ("ema", "steps", "sampler", "omega", "t_min", "t_max", "nfe", "seed", "n")
    }
    assert judged == {
        **{"ema": "1k", "steps": 1, "sampler": "average", "omega": 2, "t_min": 0.0, "t_max": 0.9},
        **{"nfe": 1, "seed": 5, "n": 24},
    }
    assert written["protocol"]["quantiser"] == "round"
    assert written["extractor"]["fingerprint"].startswith("classifier of digits")
    assert written["reference"]["about"]["data"] == "digits"
    assert len(written["reference"]["sha256"]) == 64
    assert written["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (written["world_size"], written["device"]) == (1, "cpu")
    assert {"not-full-count", "rank-deficient", "unbalanced-labels"} <= set(written["flags"])
    assert written["images_per_second"] > 0
    assert Image.open(written["grid"]).size[0] > 600


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_kept_images_are_those_of_sample_and_score_alike(judge, trained, tmp_path, kind):
    shared = [f"ckpt={trained}", "n=23", "seed=3", "batch_size=8"]
    first = judge(*shared, "reference=data", f"save={kind}")
    sample(compose([*shared, f"out={tmp_path}/samples"], "sample"))
    with np.load(tmp_path / "samples" / "samples.npz") as arrays:
        expected = arrays["arr_0"]
    if kind == "npz":
        with np.load(first["images"]) as arrays:
            assert np.array_equal(arrays["arr_0"], expected)
            assert np.array_equal(arrays["arr_1"], np.arange(23) % 10)
    else:
        names = sorted(path.name for path in Path(first["images"]).iterdir())
        assert names == [f"{number:06d}.png" for number in range(23)]
        assert all(
            np.array_equal(Image.open(Path(first["images"], n)), e[..., 0])
            for n, e in zip(names, expected, strict=True)
        )
    again = judge(f"images={first['images']}", "data=digits", "reference=data", "batch_size=8", f"out={tmp_path}/again")
    assert again["fid"] == first["fid"]
    assert again["scores"] == first["scores"]
    assert "unbalanced-labels" in first["flags"]
    assert "unbalanced-labels" not in again["flags"], "of existing images no label is known"
    assert again["quantiser"] == "none: the images were uint8 already"
    assert "checkpoint_sha256" not in again


def test_seeds_and_protocols_change_the_number(judge, trained):
    def number(*changes):
        return judge(f"ckpt={trained}", "reference=data", "n=20", *changes)["fid"]

    base = number()
    assert base == number()
    assert len({base, number("seed=1"), number("protocol=adm")}) == 3


def test_a_folder_of_weights_is_judged_as_the_checkpoint_it_comes_from(judge, trained, tmp_path):
    convert(compose([f"in={trained}", f"out={tmp_path}/weights", "ema=1k"], "convert"))
    of_folder = judge(f"ckpt={tmp_path}/weights", "reference=data", "n=20")
    assert of_folder["fid"] == judge(f"ckpt={trained}", "reference=data", "n=20", "ema=1k")["fid"]
    assert of_folder["ema"] == "1k"
    assert of_folder["checkpoint_sha256"] == file_sha256(tmp_path / "weights" / "model.safetensors")


@pytest.mark.slow
def test_latents_are_decoded(judge, checkpoint, folder, tmp_path):  # noqa: F811
    images = write_pngs(tmp_path / "real", noise_levels("latent", 9, (3, 64, 64)))
    stats = tmp_path / "real.npz"
    from pmf_lightning.make_stats import make_stats

    make_stats(compose([*MEANS, f"images={images}", f"out={stats}"], "make_stats"))
    weights = f"decoder.weights={folder}"
    report = judge(f"ckpt={checkpoint}", f"reference={stats}", "n=6", weights, "save=npz", parts=MEANS)
    with np.load(report["images"]) as arrays:
        assert arrays["arr_0"].shape == (6, 64, 64, 3)
    assert report["metric"] == "fd6_means_jit"
    assert load_checkpoint(checkpoint).network.resolution == 8


@pytest.mark.slow
def test_the_commands_print_what_they_made(call_command, trained, cache, tmp_path):
    shared = [*CLASSIFIER[:2], f"cache_dir={cache}"]
    status, output, _ = call_command(make_stats_main, "data=digits", "out=stats.npz", "n=40", *shared)
    assert status == 0
    assert "40 images of digits (32 px), features of classifier of digits" in output
    assert "stats.npz, stats_ref.npz, stats.pkl; features of 40 images" in output
    for name in ("stats.npz", "stats_ref.npz", "stats.pkl"):
        asked = [f"ckpt={trained}", f"reference={name}", "n=12", "out=judged", "force=true", "protocol=drifting"]
        status, output, _ = call_command(evaluate_main, *shared, *asked)
        assert status == 0
        assert "fd12_classifier_drifting" in output
        assert "judged/evaluation.json and judged/grid.png" in output
        assert "not-full-count" in output


# Refusals, each before anything is generated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt and images are not set: give one of the two"),
        (["ckpt=.", "images=b"], "ckpt=. images=b: give one of the two"),
        (["ckpt=nowhere"], "ckpt=nowhere: no such file"),
        (["ckpt={trained}"], "reference is not set; protocol=jit compares with jit_in256_stats.npz"),
        (["ckpt={trained}", "reference=gone.npz"], "reference=gone.npz: no such file"),
        (
            ["ckpt={trained}", "reference=data", "precision_recall_reference=gone.npz"],
            "precision_recall_reference=gone.npz: no such file",
        ),
        (["ckpt={trained}", "reference=data", "n=1"], "n=1: set it to an integer, 2 or more"),
        (["ckpt={trained}", "reference=data", "batch_size=0"], "batch_size=0: set it to an integer, 1 or more"),
        (["ckpt={trained}", "reference=data", "batch_size=null"], "batch_size=null: set it to an integer"),
        (["ckpt={trained}", "reference=data", "n=1e3"], "n=1000.0: set it to an integer, 2 or more"),
        (["ckpt={trained}", "reference=data", "device=gpux"], "device=gpux"),
        (["ckpt={trained}", "reference=data", "save=jpg"], "save=jpg: keep none or png or npz"),
        (["ckpt={trained}", "reference=data", "ema=9k"], "ema=9k: the checkpoint has no such average"),
        (["ckpt={trained}", "reference=data", "omega=0.5"], "omega=0.5"),
        (["ckpt={trained}", "reference=data", "sampler=rk4"], "sampler=rk4: this model samples by"),
        (["ckpt={trained}", "reference=data", "decoder.weights=x"], "this model generates pixels"),
        (
            ["ckpt={trained}", "extractor=inception", "extractor.weights=w.pth"],
            "the weights of Inception are not at w.pth",
        ),
        (["ckpt={trained}", "protocol=jti"], "protocol=jti: there is no such protocol; did you mean jit"),
        (["images=nowhere", "data=digits"], "images=nowhere: no such file or folder"),
        (["images={pngs}", "save=npz"], "save=npz: these images exist already, in images="),
        (["images={pngs}", "reference=data"], "extractor=classifier: it is trained on the data at hand"),
        (["images={pngs}", "data=digits", "reference=data"], "resolution is 32 in the file and 8 here"),
        (["images={pngs}", "data=digits", "data.resolution=8", "reference=data", "n=9"], "holds 4 images"),
    ],
)
def test_bad_input_is_one_line(call_command, cache, trained, tmp_path, arguments, message):
    pngs = write_pngs(tmp_path / "pngs", noise_levels("few", 4, (1, 8, 8)))
    arguments = [argument.format(trained=trained, pngs=pngs) for argument in arguments]
    parts = CLASSIFIER if "extractor=inception" not in arguments else []
    parts = [*parts, "protocol.n=4"]  # should something be generated after all
    status, _, errors = call_command(evaluate_main, *parts, f"cache_dir={cache}", *arguments)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert message in lines[0]
    assert len(lines) == 1
    assert "Traceback" not in errors
    assert not Path("evaluation").exists()


def test_statistics_of_images_without_the_crop_of_folders_are_not_for_a_model_of_a_folder(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4), about=json.dumps({"crop": "none"}))
    cfg = compose([*MEANS, f"reference={tmp_path}/stats.npz"], "evaluate")

    def opened(config):
        return evaluator_of(cfg, (1, 8, 8), 4, config, torch.device("cpu"))

    for config in (None, {"data": {"name": "digits"}}):
        assert opened(config).reference.about == {"crop": "none"}
    with pytest.raises(UserError, match=f"crop is none in the file and {CROP_RULE} here; give the statistics of the"):
        opened({"data": {"name": "folder", "root": "photos"}})


@pytest.fixture
def earlier(tmp_path):
    """The output folder with an image and the report of an earlier evaluation in a battery."""
    (tmp_path / "out" / "images").mkdir(parents=True)
    for name in ("images/9.png", "ratios.png"):
        (tmp_path / "out" / name).touch()
    (tmp_path / "out" / "evaluation.json").write_text('{"images": "out/images"}')
    return tmp_path / "out"


def test_images_of_before_are_replaced_with_the_report(judge, trained, earlier):
    """By force; images that are judged, or not of an evaluation, stay."""
    shared = [f"ckpt={trained}", "reference=data", "n=4", "save=png"]
    judge(*shared)
    assert sorted(path.name for path in (earlier / "images").iterdir()) == [f"00000{i}.png" for i in range(4)]
    with pytest.raises(UserError, match=r"out=.*out: .*evaluation.json exists already; set another out, or force=true"):
        judge(*shared, "force=false")
    judge(f"images={earlier}/images", "data=digits", "reference=data")
    assert len(list((earlier / "images").iterdir())) == 4
    with pytest.raises(UserError, match=r"out=.*out: .*images is not of the evaluation there; set another out, or rem"):
        judge(*shared, "ckpt=not-opened")


@pytest.mark.parametrize(("kind", "saved"), [("npz", ["images.npz"]), ("none", [])])
def test_images_of_another_kind_do_not_stay(judge, trained, earlier, kind, saved):
    judge(f"ckpt={trained}", "reference=data", "n=4", f"save={kind}")
    assert sorted(path.name for path in earlier.iterdir()) == ["evaluation.json", "grid.png", *saved]


def test_an_autoencoder_is_no_generator(judge, tmp_path):
    small = ["backbone.base_channels=32", "backbone.blocks=[1,1,1,1]"]
    module = build(compose([*RUN[6:], "model=mae_tiny", *small]))
    averages = {name: dict(module.network.named_parameters()) for name in [module.config["sampling"]["ema"]]}
    torch.save({"config": module.config, "state_dict": module.state_dict(), "ema": averages}, tmp_path / "mae.ckpt")
    with pytest.raises(UserError, match="mae_tiny generates no images; give a generator"):
        judge(f"ckpt={tmp_path}/mae.ckpt", "reference=data")


# Processes


@pytest.mark.slow
def test_torchrun_gives_the_same_images_and_numbers(judge, trained, cache, tmp_path):
    alone = judge(f"ckpt={trained}", "reference=data", "n=23", "batch_size=5", "save=npz")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked = [*CLASSIFIER, f"cache_dir={cache}", f"ckpt={trained}", "reference=data", "n=23", "batch_size=5", "save=npz"]
    command = ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m", "pmf_lightning.evaluate"]
    done = python("-m", *command, *asked, f"out={tmp_path}/two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("fd23_classifier_jit") == 2  # title and row, printed by rank 0 alone
    two = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert two["world_size"] == 2
    assert two["fid"] == pytest.approx(alone["fid"], rel=1e-9)
    for name in ("inception_score", "kid", "precision", "recall"):
        assert two[name] == pytest.approx(alone[name], rel=1e-9)
    with np.load(alone["images"]) as first, np.load(two["images"]) as second:
        assert np.array_equal(first["arr_0"], second["arr_0"])


def test_several_tasks_of_srun_are_refused(judge, trained, monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"srun started 2 processes, .* use --ntasks=1, and torchrun for several GPUs"):
        judge(f"ckpt={trained}", "reference=data")


def test_an_environment_that_is_not_torchruns(judge, trained, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE=2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        judge(f"ckpt={trained}", "reference=data")
