"""ONNX files: ONNX Runtime's images are torch's, at another batch than that of the export, for every family."""

import json
import sys

import families
import numpy as np
import pytest
import torch

from pmf_lightning import UserError, compose, generate, image_noise, sample_images
from pmf_lightning.convert import convert, main
from pmf_lightning.exporting import onnx_file

BATCH = 7


def export(family, folder, *changes):
    source = families.write(folder / f"{family}-weights", family)
    convert(compose([f"in={source}", f"out={folder / family}", "format=onnx", *changes], "convert"))
    return folder / family


def inputs_of(family, graph, count, **changed):
    found = onnx_file.arguments(graph, families.module(family), count)
    assert set(changed) <= set(found)
    return found | changed


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pmf", "imf", "jit", "drifting"])
def test_images_are_those_of_sample(family, tmp_path):
    folder, module = export(family, tmp_path), families.module(family)
    graph = onnx_file.OneStep(module)
    labels = torch.arange(BATCH) % 10
    found = onnx_file.run(folder / "model.onnx", inputs_of(family, graph, BATCH))
    decoder, module.decoder = module.decoder, None
    expected = sample_images(module, labels, seed=0, steps=1, batch_size=BATCH)
    module.decoder = decoder
    assert len(expected.unique()) > 100
    assert (found.clamp(-1, 1) - expected).abs().max() < 1e-5
    about = json.loads((folder / "model.json").read_text())
    assert about["difference_from_torch"] < 1e-5
    assert about["class_names"][3] == "three"
    if graph.guided:  # one number per image
        omega = torch.linspace(1, 4, BATCH)
        mixed = onnx_file.run(folder / "model.onnx", inputs_of(family, graph, BATCH, omega=omega))
        with torch.no_grad():
            wanted = graph(*inputs_of(family, graph, BATCH, omega=omega).values())
        assert (mixed - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max())
        assert (mixed[1:] - found[1:]).abs().max() > 1e-3
    with np.load(folder / "example.npz") as example:
        images = example["images"]
        again = onnx_file.run(folder / "model.onnx", {k: torch.from_numpy(example[k]) for k in about["inputs"]})
    assert np.abs(images - again.numpy()).max() < 1e-5 * max(1, np.abs(images).max())


@pytest.mark.slow
def test_the_network_alone_is_for_loops_of_ones_own(tmp_path):
    folder, module = export("jit", tmp_path, "onnx.part=network"), families.module("jit")
    z = module.objective.noise_scale * image_noise(0, 0, 2, (1, 32, 32))
    labels = torch.tensor([3, 7])
    expected = generate(module, z, labels, steps=4, sampler="euler")
    for t in (1.0, 0.75, 0.5, 0.25):
        inputs = {"z": z, "t": torch.full((2,), t), "label": labels}
        z = z - 0.25 * onnx_file.run(folder / "model.onnx", inputs)
    assert (z - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    about = json.loads((folder / "model.json").read_text())
    assert about["part"] == "network"
    assert "10 means none" in about["inputs"]["label"]["meaning"]


@pytest.mark.parametrize("family", ["pmf", "jit", "drifting", "imf"])
def test_the_inputs_are_those_that_the_network_uses(family):
    guidance = {
        "pmf": ["omega", "t_min", "t_max"],
        "imf": ["omega", "t_min", "t_max"],
        "jit": [],
        "drifting": ["omega"],
    }
    styles = ["style"] if family == "drifting" else []
    module = families.module(family)
    graph = onnx_file.OneStep(module)
    assert list(graph.inputs) == ["noise", "label", *guidance[family], *styles]
    labels = torch.arange(3)
    with torch.no_grad():
        images = graph(*onnx_file.arguments(graph, module, 3).values())
    conditions = module.objective.sampling_conditions(0, 0, 3)
    options = {name: module.config["sampling"][name] for name in ("omega", "t_min", "t_max")}
    noise = module.objective.noise_scale * image_noise(0, 0, 3, tuple(images.shape[1:]))
    expected = generate(module, noise, labels, **options, conditions=conditions)
    assert (images - expected).abs().max() < 1e-5 * expected.abs().max()


def test_guidance_at_the_first_time_becomes_an_input(monkeypatch):
    """JiT evaluates twice where t=1 is inside the interval."""
    module = families.module("jit")
    monkeypatch.setitem(module.config["sampling"], "t_max", 1.0)
    graph = onnx_file.OneStep(module)
    assert "omega" in graph.inputs
    inputs = onnx_file.arguments(graph, module, 2) | {"omega": torch.full((2,), 2.5)}
    with torch.no_grad():
        images = graph(*inputs.values())
    noise = module.objective.noise_scale * inputs["noise"]
    expected = generate(module, noise, inputs["label"], omega=2.5, t_max=1.0)
    assert (images - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("part", ["sampler", "network"])
@pytest.mark.parametrize("known", [[], ["omega"]])
def test_guidance_that_is_no_condition_is_no_input(known, part, monkeypatch):
    module = families.module("pmf")
    kept = {name: rows for name, rows in module.config["conditions"].items() if name in ("t", "r", "label", *known)}
    monkeypatch.setitem(module.config, "conditions", kept)
    graph = onnx_file.graph_of(module, part)
    assert [name for name in graph.inputs if name in onnx_file.GUIDANCE] == known
    inputs = onnx_file.arguments(graph, module, 2)
    with torch.no_grad():
        found = graph(*inputs.values())
    noise = onnx_file.arguments(onnx_file.OneStep(module), module, 2)["noise"] * module.objective.noise_scale
    options = {name: module.config["sampling"][name] for name in onnx_file.GUIDANCE}
    expected = generate(module, noise, inputs["label"], **options)
    image = found if part == "sampler" else inputs["z"] - found  # with r = 0 and t = 1
    assert (image - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("part", "steps", "nfe"), [("sampler", 1, 1), ("network", 2, 5)])
def test_a_file_of_one_step_is_described_as_such(part, steps, nfe, call_command, tmp_path, monkeypatch):
    """The model takes two steps of Heun; the card of a file of one step neither claims them nor their scores."""
    monkeypatch.setattr(onnx_file, "write", lambda *_: None)
    source = families.write(tmp_path / "weights", "jit")
    (source / "summary.json").write_text('{"fd": 2.5, "sampling_steps": 2}')
    status, output, _ = call_command(main, f"in={source}", "out=out", "format=onnx", f"onnx.part={part}")
    card = (tmp_path / "out" / "README.md").read_text()
    assert status == 0
    assert f"| sampling | steps={steps}, sampler=heun" in card
    assert f"(NFE) | {nfe} |" in card
    assert ("| sampling steps of the scores | 2 (this export takes 1) |" in card) == (steps == 1)
    assert ("note: the file takes one step, sample takes 2; onnx.part=network" in output) == (steps == 1)


def test_errors_of_the_exporter_and_large_models_are_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no rule\nfor this operation")

    monkeypatch.setattr(torch.onnx, "export", fail)
    words = r"onnx.opset=20: .* cannot be exported so \(RuntimeError: no rule for this operation\); set onnx.opset=18$"
    with pytest.raises(UserError, match=words):
        export("pmf", tmp_path, "onnx.opset=20")
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"format=onnx: the model has 0.0 GB, and an ONNX file holds 2 GB at most"):
        export("pmf", tmp_path, "force=true")


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("mae", "format=onnx", "mae_tiny generates no images; give a generator"),
        ("pmf", "onnx.part=half", "onnx.part=half: give one of sampler, network"),
        ("drifting", "onnx.part=network", "makes images in one evaluation; take onnx.part=sampler"),
        ("pmf", "onnx.opset=7", "onnx.opset=7"),
        ("pmf", "format=onxx", "format=onxx: there is no such format; did you mean onnx"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(family, change, words, tmp_path):
    with pytest.raises(UserError, match=words) as refusal:
        export(family, tmp_path, change)
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"{family}-weights"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"format=onnx: it needs .*pip install 'pmf_lightning\[onnx\]'"):
        export("pmf", tmp_path)
