"""Folders of the hub: saved, loaded and pushed with its conventions; the model card fills itself."""

import json
import shlex
from pathlib import Path

import families
import huggingface_hub
import pytest
import torch
import yaml

from pmf_lightning import HubGenerator, UserError, compose, load, sample_images
from pmf_lightning.convert import convert
from pmf_lightning.exporting.card import RunFacts, facts_of
from pmf_lightning.pipeline.sources import located

SUMMARY = {"fd": 5.979436, "fd_floor": 2.54, "n": 360, "class_accuracy": 0.975, "ema": "raw", "steps": 680}
SUMMARY |= {"metric": "fd_digits", "checkpoint": "/home/me/last.ckpt", "by_steps": {}, "best": {"value": 5.9}}
SUMMARY |= {"threads": 2, "thread_changes": 1, "skipped_steps": 0, "a_new_counter": 3, "isolated_runs": 1}
SCORES = {"fd_lite0_floor": 1.5, "is": 7.5, "fid": 9.5, "fdr": 2.5, "fdr_held_out_mae": 4.5, "sw_r": 3.5}
SCORES["swr_trained_x"] = 6.5
SUMMARY |= {**SCORES, "real_accuracy": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory: its last checkpoint, its summary, its command and its final grid."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    for part in ("checkpoints", "grids"):
        (folder / part).mkdir(parents=True)
    module = families.module("pmf")
    weights = module.network.state_dict()
    averages = {module.config["sampling"]["ema"]: weights}
    state = {f"network.{name}": value for name, value in weights.items()}
    torch.save({"config": module.config, "state_dict": state, "ema": averages}, folder / "checkpoints" / "last.ckpt")
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "run.json").write_text(json.dumps({"command": "python -m pmf_lightning.train model=pmf_digits | x"}))
    (folder / "grids" / "final.png").write_bytes(b"a picture")
    return folder


def test_saved_and_loaded_again_it_is_the_same(run, tmp_path):
    generator = HubGenerator.from_pretrained(run)
    images = generator([3, 7], seed=1)
    assert torch.equal(images, sample_images(families.module("pmf"), [3, 7], seed=1))
    generator.save_pretrained(tmp_path / "saved", model_card_kwargs={"licence": "mit"})
    names = ["README.md", "config.json", "grid.png", "model.safetensors", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == names
    again = HubGenerator.from_pretrained(tmp_path / "saved")
    assert torch.equal(again([3, 7], seed=1), images)
    assert torch.equal(sample_images(load(tmp_path / "saved"), [3, 7], seed=1), images)
    again.save_pretrained(tmp_path / "third", model_card_kwargs={"licence": "mit"})
    cards = [(tmp_path / name / "README.md").read_text() for name in ("saved", "third")]
    assert cards[0] == cards[1]  # the scores travel with the folder
    assert "/home/me" not in (tmp_path / "saved" / "summary.json").read_text()


def test_the_card_states_the_facts(run, tmp_path):
    convert(compose([f"in={run}", f"out={tmp_path / 'out'}", "format=safetensors", "licence=cc-by-4.0"], "convert"))
    text = (tmp_path / "out" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "library_name": "pmf_lightning",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["pmf_lightning", "one-step", "digits"],
    }
    weights = sum(weight.numel() for weight in families.module("pmf").network.parameters())
    for row in (
        "| objective | PixelMeanFlow |",
        "| data | digits, 10 classes |",
        "| images | 1x32x32 (channels, height, width) |",
        f"| parameters | {weights:,} |",
        "| weights | 4k (name of the average) |",
        "| sampling | steps=1, sampler=average, omega=3.0, t_min=0.1, t_max=0.7 |",
        "| network evaluations per image (NFE) | 1 |",
        "| metric | fd_digits |",
        "| weights of the scores | raw (other weights than these) |",
        "| fd (360 images) | 5.979 |",
        "| class accuracy (360 images) | 0.975 |",
        "| steps of training | 680 |",
        "![Samples, one class a column](grid.png)",
        "python -m pmf_lightning.train model=pmf_digits | x",
        f"python -m pmf_lightning.convert in={run}",
    ):
        assert row in body, row
    assert (tmp_path / "out" / "grid.png").read_bytes() == b"a picture"
    assert "None" not in text
    assert "best" not in body
    for name, value in SCORES.items():
        assert f"| {name.replace('_', ' ')} (360 images) | {value} |" in body
    assert body.count("(360 images)") == 3 + len(SCORES)  # fd, fd floor, class accuracy and these


def test_the_example_of_the_card_names_classes_of_the_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    HubGenerator.from_pretrained(run).save_pretrained("saved")
    assert "images = generator([0, 9], seed=0)" in Path("saved/README.md").read_text()
    HubGenerator.from_pretrained("saved").save_pretrained("saved")  # into the folder that it comes from
    assert Path("saved/grid.png").read_bytes() == b"a picture"


def test_without_a_run_the_card_claims_no_scores(tmp_path):
    families.write(tmp_path / "weights", "jit")
    convert(compose([f"in={tmp_path / 'weights'}", f"out={tmp_path / 'out'}", "format=diffusers"], "convert"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in text
    assert (
        "(NFE) | 5 |" in text
    )  # two steps of Heun, the last by Euler: t = 1 outside the interval, then twice 0.5 guided
    assert "grid.png" not in text
    assert "images)" not in text
    (tmp_path / "summary.json").write_text("[1]")
    assert facts_of(tmp_path).summary == {}


def test_facts_are_those_of_the_model(run, tmp_path):
    """They travel with a folder of diffusers, and a file is not described by what lies around it."""
    convert(compose([f"in={run}", f"out={tmp_path / 'out'}", "format=diffusers"], "convert"))
    for source in (run, run / "checkpoints" / "last.ckpt", located(tmp_path / "out"), tmp_path / "out"):
        assert facts_of(source).summary["fd"] == SUMMARY["fd"], source
        assert facts_of(source).summary["ema"] == "raw", source
    (run / "downloads").mkdir()
    (run / "downloads" / "release.pth").touch()
    assert facts_of(run / "downloads" / "release.pth") == RunFacts()


def test_the_card_s_command_can_be_pasted(tmp_path):
    source = families.write(tmp_path / "a [b] 'c'", "pmf")
    options = ["format=diffusers", "licence=cc by"]
    cfg = compose([], "convert")
    cfg["in"], cfg.out, cfg.format, cfg.licence = str(source), str(tmp_path / "out"), "diffusers", "cc by"
    convert(cfg)
    text = (tmp_path / "out" / "README.md").read_text()
    (line,) = (line for line in text.splitlines() if "pmf_lightning.convert" in line)
    assert shlex.split(line)[3:] == [f"in={source}", f"out={tmp_path / 'out'}", *options]


def test_push_to_hub_sends_the_folder(run, monkeypatch):
    """Without a network: what the interface of the hub is asked to do."""
    calls = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **options):
            calls["created"] = repo_id, options["private"]
            return huggingface_hub.RepoUrl("https://huggingface.co/" + repo_id)

        def upload_folder(self, repo_id, folder_path, **_):
            calls["sent"] = sorted(path.name for path in folder_path.iterdir())
            calls["card"] = (folder_path / "README.md").read_text()
            calls["repository"] = repo_id
            return "commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    generator = HubGenerator.from_pretrained(run)
    assert generator.push_to_hub("me/digits", private=True, model_card_kwargs={"licence": "mit"}) == "commit"
    assert calls["created"] == ("me/digits", True)
    assert calls["repository"] == "me/digits"
    assert {"README.md", "config.json", "model.safetensors", "grid.png"} <= set(calls["sent"])
    assert "license: mit" in calls["card"]
    assert 'from_pretrained("me/digits")' in calls["card"]


def test_from_the_hub_at_a_revision(run, monkeypatch, tmp_path):
    convert(compose([f"in={run}", f"out={tmp_path / 'out'}"], "convert"))
    asked = {}

    def snapshot(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path / "out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    generator = HubGenerator.from_pretrained("me/digits", revision="v2", token="t", local_files_only=True)
    assert torch.equal(generator([3]), sample_images(families.module("pmf"), [3]))
    assert (asked["repository"], asked["revision"], asked["token"]) == ("me/digits", "v2", "t")
    assert asked["local_files_only"] is True


def test_without_a_network_one_line_says_what_to_do(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="hf download me/digits --local-dir FOLDER, then give that folder"):
        HubGenerator.from_pretrained("me/digits")
