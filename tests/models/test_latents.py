"""Latent models: the SD-VAE's weights, its normalisation, and pixels wherever images are shown or kept."""

import json
import math
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from common import normal
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from shrunk import BACKBONE, RUN

from pmf_lightning import UserError, build, compose, generate, load_checkpoint
from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.models import sd_vae
from pmf_lightning.models.sd_vae import SDVAE
from pmf_lightning.pipeline.migrate import migrate_config
from pmf_lightning.sample import main as sample_main
from pmf_lightning.sampling.generate import image_noise, numbered_images
from pmf_lightning.train import train
from pmf_lightning.utils.hydra_compat import instantiate

ARCHITECTURE = {
    **{"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8, 8, 8, 8]},
    **{"layers_per_block": 1, "norm_num_groups": 4, "act_fn": "silu", "sample_size": 64},
    **{"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
}
NUMBERS = compose(["data=imagenet256_latents"]).decoder
FILE, OLD = "diffusion_pytorch_model.safetensors", {"to_q": "query", "to_k": "key", "to_v": "value"}
LATENTS = normal("latents", shape=(3, 4, 8, 8), dtype=torch.float32)
LABELS = torch.tensor([0, 3, 1])


def decoder(weights, **changes) -> SDVAE:
    fields = {key: NUMBERS[key] for key in ("repository", "scale", "batch_size")}
    moments = {key: list(NUMBERS[key]) for key in ("mean", "std")}
    return SDVAE(**{"weights": str(weights), "architecture": ARCHITECTURE, **fields, **moments, **changes})


@pytest.fixture(scope="module")
def vae():
    """A random autoencoder, about as strong as a trained one: its pixels fill [-1, 1]."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKL(**ARCHITECTURE).eval()
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            fan_in = weight[0].numel()
            spread = 1 / math.sqrt(fan_in) if weight.ndim > 1 else 0.1
            weight.copy_(spread * normal("vae", name, shape=tuple(weight.shape)) + (name.endswith("norm.weight")))
    return vae


@pytest.fixture(scope="module")
def folder(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vae"
    vae.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def latent_overrides(folder):
    """A latent model on the published data entry, shrunk: latents of 8 x 8 x 4, a decoder of random weights."""
    data = ["data=imagenet256_latents", "data.resolution=8", "data.classes=10", f"decoder.weights={folder}"]
    return [*RUN, *data, "backbone.patch=2"]


@pytest.fixture(scope="module")
def checkpoint(latent_overrides, tmp_path_factory):
    """The checkpoint of an untrained latent model whose weights are none of them zero; no weights path inside."""
    module = build(compose([*latent_overrides, "decoder.weights=null"]))
    with torch.no_grad():
        for name, weight in module.network.named_parameters():
            weight.add_(0.1 * normal(name, shape=tuple(weight.shape)))
    averages = {name: dict(module.network.named_parameters()) for name in ("1k", "2k")}
    path = tmp_path_factory.mktemp("latent") / "last.ckpt"
    torch.save({"config": module.config, "state_dict": module.state_dict(), "ema": averages}, path)
    return path


def test_the_numbers_are_the_papers():
    assert list(NUMBERS.mean) == [0.86488, -0.27787343, 0.21616915, 0.3738409]
    assert list(NUMBERS.std) == [4.85503674, 5.31922414, 3.93725398, 3.9870003]
    with torch.device("meta"):
        full = sd_vae._autoencoder()(**OmegaConf.to_container(NUMBERS.architecture))
    assert sum(weight.numel() for weight in full.parameters()) == 83_653_863  # x 4 bytes: the published 334.7 MB
    assert 2 ** (len(full.config.block_out_channels) - 1) == NUMBERS.scale


def test_decoding_is_the_autoencoder_on_raw_latents(vae, folder):
    ours, raw = decoder(folder), 5 * LATENTS
    with torch.no_grad():
        expected = vae.decode(raw).sample
    pixels = ours.decode(ours.normalise(raw))
    assert pixels.shape == (3, 3, 64, 64)
    assert pixels.dtype == torch.float32
    assert (pixels - expected).abs().max() < 1e-5 * expected.abs().max()
    mean, std = (torch.tensor(list(NUMBERS[key]))[:, None, None] for key in ("mean", "std"))
    assert torch.equal(ours.normalise(raw), (raw - mean) / std)
    assert torch.equal(ours.denormalise(LATENTS), LATENTS * std + mean)
    assert (vae.decode(raw / 0.18215).sample - expected).abs().max() > 0.01, "a factor would show"


def test_encoding_gives_raw_moments(vae, folder):
    images = normal("images", shape=(3, 3, 64, 64), dtype=torch.float32).clamp(-1, 1)
    mean, std = decoder(folder, batch_size=2).encode(images)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    assert mean.shape == std.shape == (3, 4, 8, 8)
    assert (mean - posterior.mean).abs().max() < 1e-5
    assert (std - posterior.std).abs().max() < 1e-5
    assert std.min() > 0


def test_chunks_change_nothing_but_rounding(folder):
    whole = decoder(folder, batch_size=3).decode(LATENTS)
    for batch_size in (1, 2):
        assert (decoder(folder, batch_size=batch_size).decode(LATENTS) - whole).abs().max() < 1e-5


def test_frozen_float32_in_eval_mode_whatever_surrounds_it(folder):
    ours = decoder(folder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ours.decode(LATENTS.requires_grad_())
    assert not inside.requires_grad
    assert torch.equal(inside, ours.decode(LATENTS.detach().double()))
    assert not ours.vae.training
    assert {weight.dtype for weight in ours.vae.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in ours.vae.parameters())


@pytest.mark.parametrize("form", ["file", "bin", "half", "old names", "old folder"])
def test_every_form_of_the_weights_decodes_alike(form, folder, tmp_path):
    state = load_file(folder / FILE)
    old = {name.replace("to_out.0", "proj_attn"): value for name, value in state.items()}
    for new, name in OLD.items():
        old = {key.replace(new, name): value for key, value in old.items()}
    assert len(old.keys() - state.keys()) == 16, "encoder and decoder attend once each"
    path = tmp_path / FILE
    if form == "bin":
        torch.save(state, path := tmp_path / "diffusion_pytorch_model.bin")
    elif form == "half":
        save_file({name: value.half() for name, value in state.items()}, path)
    else:
        save_file(old if form.startswith("old") else state, path)
    if form == "old folder":
        (path := tmp_path).joinpath("config.json").write_text((folder / "config.json").read_text())
    pixels, expected = decoder(path).decode(LATENTS), decoder(folder).decode(LATENTS)
    if form == "half":
        assert 0 < (pixels - expected).abs().max() < 0.02
    else:
        assert torch.equal(pixels, expected)


def test_loading_draws_nothing_from_the_global_generator(folder):
    before = torch.get_rng_state()
    for weights in (folder, folder / FILE):
        decoder(weights).load()
    assert torch.equal(torch.get_rng_state(), before)


def _without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: _without(state, "decoder.conv_in.weight"), "it lacks decoder.conv_in.weight; give a folder"),
        (lambda state: {**state, "extra.weight": torch.zeros(1)}, "it has the foreign extra.weight"),
        (lambda state: {**state, "decoder.conv_in.bias": torch.zeros(9)}, "another shape of decoder.conv_in.bias"),
        (lambda state: {"first_stage_model.decoder.conv_in.bias": torch.zeros(8)}, "names of the original release"),
        (lambda state: {"network.weight": torch.zeros(1)}, "it lacks .* and .* more, has the foreign network.weight"),
    ],
    ids=["lacking", "foreign", "shape", "original", "another network"],
)
def test_other_weights_are_refused(spoil, message, folder, tmp_path):
    save_file(spoil(load_file(folder / FILE)), tmp_path / FILE)
    with pytest.raises(UserError, match=message) as refused:
        decoder(tmp_path / FILE).load()
    assert str(tmp_path) in str(refused.value)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"decoder.weights="):
        decoder(tmp_path).load()


@pytest.mark.parametrize("name", ["text.safetensors", "text.bin", "list.bin"])
def test_unreadable_files_are_refused(name, tmp_path):
    path = tmp_path / name
    if name == "list.bin":
        torch.save([1, 2], path)
    else:
        path.write_text("no weights")
    with pytest.raises(UserError, match=r"decoder.weights=.*(cannot be read|no plain state dict).*give a folder"):
        decoder(path).load()


def test_missing_weights_say_what_to_give(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder; give a folder with config.json"):
        decoder(tmp_path / "nowhere").load()
    with pytest.raises(UserError, match=r"diffusers cannot read this folder .*config.json"):
        decoder(tmp_path).load()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match=r"decoder.weights=null: pmf/no-vae is not in diffusers' cache .*set decoder.weights to a folder",
    ):
        replace(decoder("x"), weights=None, repository="pmf/no-vae").load()


def test_without_diffusers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'pmf_lightning\[latents\]'"):
        decoder(folder).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.0] * 3}, "mean has 3 numbers and std 4"),
        ({"std": [1.0, 1.0, 0.0, 1.0]}, "std=.*above 0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"scale": 0}, "scale=0"),
    ],
)
def test_numbers_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        decoder("anywhere", **changes)


def test_another_autoencoder_is_refused(folder):
    with pytest.raises(
        UserError,
        match=r"latents of 4 channels to 3 colours, 8 pixels per side of a latent; .* 4 channels and 4 pixels",
    ):
        decoder(folder, scale=4).load()
    with pytest.raises(UserError, match=r"decoder.mean has 4 numbers, data.channels=3"):
        build(compose(["model=imf_b2", "data=imagenet256_latents", *BACKBONE, "data.channels=3"]))
    with pytest.raises(UserError, match=r"decoder.batch_size=0: set it to an integer"):
        build(compose(["model=imf_b2", "data=imagenet256_latents", *BACKBONE, "decoder.batch_size=0"]))


def test_imf_b2_is_a_model_of_32_x_32_x_4_latents():
    cfg = compose(["model=imf_b2", "data=imagenet256_latents"])
    with torch.device("meta"):
        module = build(cfg)
        latents = torch.zeros(2, 4, 32, 32)
        out = generate(module, latents, torch.zeros(2, dtype=torch.long))
    assert out.shape == (2, 4, 32, 32)
    assert module.network.grid == 16
    assert module.objective.noise_scale == 1
    assert isinstance(module.decoder, SDVAE)
    assert module.decoder.mean == list(NUMBERS.mean)
    with pytest.raises(UserError, match=r"data=imagenet256_latents needs its WebDataset shards: set data.root"):
        instantiate(cfg.data).check()
    with pytest.raises(UserError, match=r"data.root=x: there is no such folder"):
        instantiate(compose(["data=imagenet256_latents", "data.root=x"]).data).check()


def test_the_decoder_is_no_part_of_the_module(latent_overrides):
    cfg = compose(latent_overrides)
    module, plain = build(cfg), build(OmegaConf.merge(cfg, {"decoder": None}))
    module.decoder.load()
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert len(list(module.modules())) == len(list(plain.modules()))
    assert len(list(module.parameters())) == len(list(plain.parameters()))


def test_numbered_images_are_pixels_and_generate_stays_latent(checkpoint, folder):
    module = load_checkpoint(checkpoint)
    module.decoder = replace(module.decoder, weights=str(folder))
    latents = generate(module, image_noise(7, 2, 3, (4, 8, 8)), LABELS)
    assert latents.shape == (3, 4, 8, 8)
    pixels = numbered_images(module, LABELS, 7, 2)
    assert torch.equal(pixels, module.to_pixels(latents))
    assert torch.equal(pixels, decoder(folder).decode(latents))
    assert pixels.std() > 0.05


def test_pixel_models_are_untouched():
    module = build(compose([*RUN, "data=digits"]))
    assert module.decoder is None
    with torch.no_grad():
        for name, weight in module.network.named_parameters():
            weight.add_(0.1 * normal(name, shape=tuple(weight.shape)))
    noise = module.objective.noise_scale * image_noise(7, 2, 3, (1, 32, 32))
    images = generate(module, noise, LABELS, omega=2.0)
    assert torch.equal(numbered_images(module, LABELS, 7, 2, omega=2.0), images)
    assert module.to_pixels(images) is images
    older = {name: value for name, value in module.config.items() if name != "decoder"}
    assert build(OmegaConf.create(migrate_config(older))).decoder is None


@pytest.fixture
def sample(call_command):
    return partial(call_command, sample_main)


def test_sample_writes_pixels_of_a_latent_model(sample, checkpoint, folder, tmp_path):
    status, _, errors = sample(
        f"ckpt={checkpoint}", f"decoder.weights={folder}", "n=5", "classes=[3,7]", "batch_size=2"
    )
    assert status == 0, errors
    with np.load(tmp_path / "samples" / "samples.npz") as arrays:
        images = torch.from_numpy(arrays["arr_0"])
    assert images.shape == (5, 64, 64, 3)
    module = load_checkpoint(checkpoint)
    judged = {name: module.config["sampling"][name] for name in ("steps", "omega", "t_min", "t_max")}
    latents = generate(module, image_noise(0, 0, 5, (4, 8, 8)), torch.tensor([3, 7, 3, 7, 3]), **judged)
    expected = to_uint8(decoder(folder).decode(latents)).permute(0, 2, 3, 1)
    assert (images.int() - expected.int()).abs().max() <= 1  # chunks change rounding only
    assert len(images.unique()) > 50
    assert Image.open(tmp_path / "samples" / "grid.png").size == (5 * 66 + 2, 66 + 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decoder.weights=nowhere"], ["decoder.weights=nowhere", "no such file", "config.json"]),
        (["decoder.wait=x"], ["decoder.wait"]),
    ],
    ids=" ".join,
)
def test_bad_weights_of_sample_are_one_line(sample, checkpoint, arguments, words):
    status, _, errors = sample(f"ckpt={checkpoint}", *arguments)
    assert status == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


def test_a_pixel_model_takes_no_decoder(sample, tmp_path):
    module = build(compose([*RUN, "data=digits"]))
    averages = {"2k": dict(module.network.named_parameters())}
    torch.save({"config": module.config, "state_dict": module.state_dict(), "ema": averages}, tmp_path / "a.ckpt")
    status, _, errors = sample("ckpt=a.ckpt", "decoder.weights=vae")
    assert status == 2
    assert "decoder.weights=vae: this model generates pixels" in errors


class Latents(ArrayDataset):
    """Float latents, as the reader of shards will give them: a stand-in until it exists."""

    def __init__(self):
        self.images, self.labels = normal("data", shape=(64, 4, 8, 8), dtype=torch.float32), torch.arange(64) % 10

    def __getitems__(self, indices):
        return [(self.images[row], int(self.labels[row])) for row in indices]


@pytest.fixture
def latent_data(monkeypatch):
    source = "pmf_lightning.data.shards.source.LatentShards"
    monkeypatch.setattr(f"{source}.check", lambda self: None)
    monkeypatch.setattr(f"{source}.train", lambda self: Latents())
    monkeypatch.setattr(f"{source}.class_names", None)


def test_a_latent_run_shows_pixels_and_keeps_no_decoder(latent_data, latent_overrides, folder, tmp_path):
    summary = train(
        compose(
            [*latent_overrides, "steps=2", "sample_grid.every_images=16", "sample_grid.rows=1", f"run_dir={tmp_path}"]
        )
    )
    assert summary["steps"] == 2
    with Image.open(summary["grid"]) as grid:
        assert grid.size == (10 * 66 + 2, 66 + 2)
        assert np.asarray(grid)[2:66, 2:66].std() > 1, "not one colour"
    assert len(list((tmp_path / "grids").glob("*-raw.png"))) == 2
    saved = torch.load(summary["checkpoint"], weights_only=True)
    names = {"network." + name for name in saved["ema"]["2k"]}
    assert saved["state_dict"].keys() == names
    module = load_checkpoint(tmp_path)
    assert module.config["decoder"]["weights"] == str(folder)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0.5 < rows[0]["loss_v"] < 6, "unit noise beside unit latents"


def test_floats_reach_the_objective_as_they_are(latent_overrides, monkeypatch):
    module, seen = build(compose(latent_overrides)), []

    class Stop(Exception):
        pass

    def draw(batch, *_):
        seen.append(batch.x)
        raise Stop

    monkeypatch.setattr(type(module.objective), "draw", staticmethod(draw))
    module.trainer = type("Trainer", (), {"accumulate_grad_batches": 1, "world_size": 1, "global_rank": 0})()
    monkeypatch.setattr(type(module), "global_step", 0)
    images, labels = Latents().images[:4], Latents().labels[:4]
    for given in (images, to_uint8(images)):
        with pytest.raises(Stop):
            module.training_step([given, labels], 0)
    assert torch.equal(seen[0], images)
    assert torch.equal(seen[1], to_uint8(images) / 127.5 - 1)


def test_training_without_weights_stops_before_it_begins(latent_data, latent_overrides, tmp_path):
    run = [*latent_overrides, "steps=1", "decoder.weights=nowhere", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(
        UserError, match=r"decoder.weights=nowhere: no such.*or train without sample grids, sample_grid.enabled"
    ):
        train(compose(run))
    with pytest.raises(UserError, match=r"no classifier evaluates the latents of imagenet256_latents; metrics=none"):
        train(compose([*run, "metrics=small"]))
    assert not (tmp_path / "run").exists()
    summary = train(compose([*run, "sample_grid.enabled=false"]))
    assert summary["steps"] == 1
    assert summary["grid"] is None
    assert not (tmp_path / "run" / "grids").exists()
