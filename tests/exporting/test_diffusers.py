"""The folder of diffusers: the images of ``sample``, arguments as its users expect, and plain refusals."""

import json
from types import SimpleNamespace

import families
import numpy as np
import pytest
import torch
from processes import python

from pmf_lightning import UserError, compose, generate, image_noise, load, sample_images
from pmf_lightning.convert import convert
from pmf_lightning.pipeline.loading import load_every_average
from pmf_lightning.sampling.generate import numbered_images
from pmf_lightning.utils import rng


def export(source, out, *changes):
    return convert(compose([f"in={source}", f"out={out}", "format=diffusers", *changes], "convert"))


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory):
    """Open the export of a family as diffusers does, but without a copy of the code in its cache."""
    from pmf_lightning.exporting.diffusers_network import PMFLightningNetwork
    from pmf_lightning.exporting.diffusers_pipeline import PMFLightningPipeline

    opened = {}

    def get(family, vae=None):
        if family not in opened:
            folder = tmp_path_factory.mktemp(family)
            export(families.write(folder / "weights", family), folder / "exported")
            network = PMFLightningNetwork.from_pretrained(folder / "exported", subfolder="network")
            opened[family] = PMFLightningPipeline(network, vae), folder / "exported"
        return opened[family]

    return get


@pytest.mark.parametrize("family", ["pmf", "jit", "drifting"])
def test_images_are_those_of_sample(family, pipeline_of):
    pipeline, folder = pipeline_of(family)
    labels = [3, 7, 0]
    expected = sample_images(families.module(family), labels, seed=5, batch_size=3)
    assert len(expected.unique()) > 100
    images = pipeline(class_labels=labels, seed=5, output_type="pt").images
    assert (2 * images - 1 - expected).abs().max() < 1e-6
    assert torch.equal(sample_images(load(folder), labels, seed=5, batch_size=3), expected)


def test_settings_of_the_call_are_those_of_sample(pipeline_of):
    pipeline, _ = pipeline_of("pmf")
    options = {"steps": 3, "omega": 2.0, "t_min": 0.2, "t_max": 0.5}
    expected = sample_images(families.module("pmf"), [1, 2], seed=0, **options)
    call = {"num_inference_steps": 3, "guidance_scale": 2.0, "guidance_interval": (0.2, 0.5), "output_type": "np"}
    images = pipeline(class_labels=["one", "Two"], seed=0, **call).images
    assert np.abs(2 * images.transpose(0, 3, 1, 2) - 1 - expected.numpy()).max() < 1e-6


def test_noise_is_scaled_inside(pipeline_of):
    """Given noise is unit noise: the scale of this model is not 1, so that unscaled noise would show."""
    pipeline, _ = pipeline_of("pmf")
    module = families.module("pmf")
    assert module.objective.noise_scale == 0.45
    noise = image_noise(9, 0, 2, (1, 32, 32))
    expected = generate(module, 0.45 * noise, torch.tensor([4, 4]), omega=2.0, t_min=0.1, t_max=0.7)
    found = pipeline([4, 4], latents=noise, guidance_scale=2.0, output_type="latent").images
    assert (found - expected).abs().max() < 1e-6
    assert (generate(module, noise, torch.tensor([4, 4]), omega=2.0) - expected).abs().max() > 0.01


def test_a_generator_decides_the_images(pipeline_of):
    for family in ("pmf", "drifting"):
        pipeline, _ = pipeline_of(family)

        def drawn(*seeds, pipeline=pipeline):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            return pipeline([3] * len(seeds), generator=generators, output_type="pt").images

        assert torch.equal(drawn(1, 2), drawn(1, 2))
        assert not torch.equal(drawn(1, 2), drawn(3, 2))
        assert (drawn(1, 2)[1:] - drawn(2)).abs().max() < 1e-6, "an image depends on its own generator only"
    pair = tuple(torch.Generator().manual_seed(seed) for seed in (3, 2))
    assert torch.equal(pipeline([3, 3], generator=pair, output_type="pt").images, drawn(3, 2))
    single = torch.Generator().manual_seed(4)
    first, second = (pipeline(3, generator=single, output_type="pt").images for _ in range(2))
    assert not torch.equal(first, second)


def test_random_numbers_are_drawn_on_the_device_of_the_generator(pipeline_of, monkeypatch):
    """diffusers refuses to draw on the CPU from a generator of a GPU."""
    asked = []

    def draw(shape, *_, device=None, **__):
        asked.append(device)
        return torch.zeros(shape)

    monkeypatch.setattr("pmf_lightning.exporting.diffusers_pipeline.randn_tensor", draw)
    monkeypatch.setattr(torch, "randint", lambda _, shape, **options: draw(shape, **options))
    gpu = SimpleNamespace(device=torch.device("cuda"))
    for generator in (gpu, [gpu]):
        pipeline_of("pmf")[0]._noise(1, generator, None, None)
    assert asked == [gpu.device] * 4


def test_pictures_are_those_that_sample_writes(pipeline_of):
    from pmf_lightning.data.transforms import to_uint8

    pipeline, _ = pipeline_of("pmf")
    levels = to_uint8(sample_images(families.module("pmf"), [3], seed=1))
    ((picture,),) = pipeline(3, seed=1, return_dict=False)
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), levels[0, 0].numpy())


def test_latents_are_decoded_by_the_vae_of_the_folder(tmp_path, pipeline_of, tiny_vae):
    pipeline, _ = pipeline_of("imf")
    with pytest.raises(ValueError, match=r"makes latents and the folder holds no vae; set pipeline.vae"):
        pipeline(3, seed=0)
    tiny_vae.save_pretrained(tmp_path / "vae")
    export(families.write(tmp_path / "weights", "imf"), tmp_path / "exported", f"vae={tmp_path / 'vae'}")
    assert json.loads((tmp_path / "exported" / "model_index.json").read_text())["vae"][0] == "diffusers"
    module = load(tmp_path / "exported")  # decodes with the folder's own
    assert load_every_average(tmp_path / "exported", ())[0].decoder.weights == str(tmp_path / "exported" / "vae")
    expected = sample_images(module, [3, 7], seed=2)
    pipeline.vae = tiny_vae
    images = pipeline([3, 7], seed=2, output_type="pt").images
    pipeline.vae = None
    assert images.shape == (2, 3, 64, 64)
    assert (2 * images - 1 - expected).abs().max() < 1e-5  # a decoder enlarges the last digits of latents
    raw = pipeline([3, 7], seed=2, output_type="latent").images
    module.decoder = None
    assert (raw - sample_latents(module)).abs().max() < 1e-6


def sample_latents(module):
    options = {name: module.config["sampling"][name] for name in ("omega", "t_min", "t_max")}
    return numbered_images(module, torch.tensor([3, 7]), seed=2, first=0, **options)


@pytest.fixture(scope="module")
def tiny_vae():
    from diffusers import AutoencoderKL

    blocks = {"block_out_channels": [8] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4}
    blocks |= {"up_block_types": ["UpDecoderBlock2D"] * 4, "norm_num_groups": 4, "latent_channels": 4}
    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKL(**blocks).eval()
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=rng.generator("vae", name)) + ("norm" in name))
    return vae


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"class_labels": 10}, "classes=10: 10 is not a class"),
        ({"class_labels": "cat"}, "cat is not a class of this model"),
        ({"class_labels": 3, "guidance_scale": 0.5}, "omega=0.5: the guidance scale is 1"),
        ({"class_labels": 3, "num_inference_steps": 0}, "steps=0: at least one step"),
        ({"class_labels": 3, "output_type": "jpg"}, "output_type=jpg: give one of pil, np, pt, latent"),
        ({"class_labels": 3, "seed": 1, "latents": torch.zeros(1, 1, 32, 32)}, "give one of generator, latents"),
        ({"class_labels": [3, 3], "generator": (torch.Generator(),)}, "1 generators, but 2 labels; give one for each"),
        ({"class_labels": [3, 3], "latents": torch.zeros(1, 1, 32, 32)}, r"latents: their shape is \[1, 1, 32, 32\]"),
    ],
)
def test_bad_arguments_are_named(call, words, pipeline_of):
    with pytest.raises((ValueError, UserError), match=words):
        pipeline_of("pmf")[0](**call)


@pytest.mark.slow
def test_it_opens_in_a_process_of_diffusers_and_is_saved_again(tmp_path, pipeline_of):
    """What trust_remote_code runs is the code in the folder; the network needs our package, and says so without it."""
    _, folder = pipeline_of("pmf")
    code = f"""
import sys, torch
from diffusers import DiffusionPipeline
assert "pmf_lightning" not in sys.modules
for source in ({str(folder)!r}, {str(tmp_path / "again")!r}):
    pipeline = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
    torch.save(pipeline([3, 7], seed=5, output_type="pt").images, "images.pt")
    pipeline.save_pretrained({str(tmp_path / "again")!r})
print(type(pipeline).__module__)
"""
    without = f"""
import sys
from diffusers import DiffusionPipeline
sys.modules["pmf_lightning"] = None  # as where it is not installed
try:
    DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
except ImportError as error:
    print(error)
"""
    options = {"cwd": tmp_path, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    module, refusal = (python("-c", one, **options) for one in (code, without))
    assert module.stdout.startswith("diffusers_modules."), module.stderr
    assert refusal.stdout == "this model needs the code of its network: pip install pmf_lightning\n", refusal.stderr
    images = torch.load(tmp_path / "images.pt")
    assert (2 * images - 1 - sample_images(families.module("pmf"), [3, 7], seed=5)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("mae", [], "in=.*mae: mae_tiny generates no images; give a generator"),
        ("pmf", ["format=gguf"], "format=gguf: there is no such format; known: .*diffusers"),
        ("pmf", ["out=there"], "out=there: something else is there; set another out"),
        ("pmf", ["out=exported"], "out=exported: exists already; set another out, or force=true"),
        ("pmf", ["out=file.pt"], "out=file.pt: format=diffusers is a folder"),
        ("pmf", ["vae=x"], "vae=x: this model generates pixels and has no decoder; leave it out"),
        ("imf", ["vae=x"], "decoder.weights=x: no such file or folder"),
    ],
)
def test_bad_exports_are_refused_in_one_line(source, changes, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    families.write(tmp_path / source, source)
    (tmp_path / "there").mkdir()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "README.md").write_text("library_name: pmf_lightning")
    with pytest.raises(UserError, match=words) as refusal:
        export(source, "new", *changes)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["exported", source, "there"])


def test_force_replaces_an_older_export(tmp_path):
    families.write(tmp_path / "weights", "pmf")
    for force, kind in (("false", "diffusers"), ("true", "diffusers"), ("true", "safetensors")):
        export(tmp_path / "weights", tmp_path / "out", f"force={force}", f"licence=mit-{force}", f"format={kind}")
    assert "license: mit-true" in (tmp_path / "out" / "README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
