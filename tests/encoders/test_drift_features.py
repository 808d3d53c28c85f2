"""Drifting's features: the official numbers, independent formulas, gradients, and encoders that do not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from common import normal, relative, uniform
from conftest import _load
from flax_files import mae_in_flax, nested, write
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm_weights import weights_of
from torch.nn import functional as F

from pmf_lightning import UserError, compose
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.encoders.battery.timm_member import TimmMember
from pmf_lightning.encoders.classifier.train import ClassifierSettings
from pmf_lightning.encoders.drifting.build import (
    pixels_alone,
    published_maps,
    released,
    run_encoder,
    trained_by_run,
    trained_on_data,
)
from pmf_lightning.encoders.drifting.convnext import ConvNeXtMaps, convnext_features
from pmf_lightning.encoders.drifting.extractor import DriftFeatures
from pmf_lightning.encoders.drifting.feature_maps import TimmMaps
from pmf_lightning.encoders.drifting.mae import mae_features, per_place, summaries
from pmf_lightning.encoders.drifting.train_mae import MAESettings
from pmf_lightning.models.mae import MAE, MAEEncoder
from pmf_lightning.models.vit import init_weights
from pmf_lightning.objectives.drifting import pixel_features
from pmf_lightning.utils import rng
from pmf_lightning.weights.mae import mae_tensors

ATTO = "convnextv2_atto.fcmae_ft_in1k"
SMALL = "test_efficientnet.r160_in1k"
DIGITS = Digits(name="digits", resolution=8, channels=1, classes=10, held_out_images=360)


def tiny_encoder(**changes):
    sizes = {"resolution": 32, "channels": 3, "patch": 1, "base_channels": 8, "blocks": (2, 2, 2, 2)}
    encoder = MAEEncoder(**{**sizes, **changes})
    init_weights(encoder, lambda name: rng.generator("tests", name))
    return encoder


@pytest.fixture(scope="module")
def golden():
    return {name.removeprefix("p1/"): value for name, value in _load("drift_features.npz").items()}


@pytest.fixture(scope="module")
def encoder(golden):
    official = {name.removeprefix("w/"): value for name, value in golden.items() if name.startswith("w/")}
    encoder = tiny_encoder()
    encoder.load_state_dict(mae_tensors(official, encoder))
    return encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def wanted(golden):
    return {name.removeprefix("act/"): value for name, value in golden.items() if name.startswith("act/")}


def test_features_are_the_official_ones(encoder, golden, wanted):
    found = mae_features(encoder, golden["x"])
    assert list(found)[:4] == ["global", "norm_x", "conv1", "conv1_mean"]
    assert found.keys() == wanted.keys()
    assert len(found) == 65
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=3e-5, msg=lambda text, n=name: f"{n}: {text}")
        assert relative(found[name], value) < 1e-5, name


def test_the_papers_encoder_has_86_features():
    with torch.device("meta"):
        encoder = tiny_encoder(resolution=64, patch=2, blocks=(3, 4, 6, 3))
        found = mae_features(encoder, torch.empty(2, 3, 64, 64))
    assert len(found) == 86
    assert {n for n in found if n.endswith(("blk4", "blk6"))} == {"layer2_blk4", "layer3_blk4", "layer3_blk6"}
    assert found["layer3_blk6_std_4"].shape == (2, 4, 32)
    assert (found["global"].shape, found["norm_x"].shape) == ((2, 1, 3 * 64 * 64), (2, 1, 12))


def test_pixels_and_norm_x_are_in_the_order_row_column_colour():
    x = normal("x", shape=(2, 3, 16, 16))
    found = mae_features(tiny_encoder(resolution=16, patch=2).double(), x)
    assert torch.equal(found["global"][1, 0], torch.stack([x[1, :, i // 16, i % 16] for i in range(256)]).flatten())
    for row, column, colour in ((0, 0, 0), (0, 1, 2), (1, 0, 1)):
        here = x[:, colour, row::2, column::2]
        wanted = (here.square().mean((1, 2)) + 1e-6).sqrt()
        assert relative(found["norm_x"][:, 0, row * 6 + column * 3 + colour], wanted) < 1e-12


def test_summaries_by_loops():
    x = normal("map", shape=(2, 3, 4, 8)).numpy()
    found = summaries("f", torch.from_numpy(x))
    assert list(found) == ["f", "f_mean", "f_std", "f_mean_2", "f_mean_4", "f_std_2", "f_std_4"]
    for b in range(2):
        for place in range(32):
            assert np.array_equal(found["f"][b, place], x[b, :, place // 8, place % 8])
        for size, name in ((2, "_2"), (4, "_4")):
            columns = 8 // size
            for cell in range(32 // size**2):
                rows, cols = (slice(n * size, (n + 1) * size) for n in divmod(cell, columns))
                part = x[b, :, rows, cols]
                assert np.allclose(found[f"f_mean{name}"][b, cell], part.mean((1, 2)), atol=1e-12)
                wanted = np.sqrt(part.var((1, 2)) + 1e-6)
                assert np.allclose(found[f"f_std{name}"][b, cell], wanted, atol=1e-12)
        assert np.allclose(found["f_mean"][b, 0], x[b].mean((1, 2)), atol=1e-12)
        assert np.allclose(found["f_std"][b, 0], np.sqrt(x[b].var((1, 2)) + 1e-6), atol=1e-12)


@pytest.mark.parametrize(
    ("sets", "kinds"),
    [
        ("a", ("",)),
        ("ab", ("", "_mean", "_std")),
        ("abc", ("", "_mean", "_std", "_mean_2", "_std_2")),
        ("cd", ("_mean_2", "_mean_4", "_std_2", "_std_4")),
    ],
)
def test_sets_of_the_ablation(encoder, golden, wanted, sets, kinds):
    found = mae_features(encoder, golden["x"], sets=sets, every_block=3)
    names = ("conv1", "layer1", "layer2", "layer3", "layer4")
    assert set(found) == {"global", "norm_x", *(f"{name}{kind}" for name in names for kind in kinds)}
    assert all(relative(found[name], wanted[name]) < 1e-5 for name in found)


def test_cells_that_do_not_tile_a_map_are_left_out():
    assert list(summaries("f", torch.zeros(1, 2, 6, 6))) == ["f", "f_mean", "f_std", "f_mean_2", "f_std_2"]
    assert list(summaries("f", torch.zeros(1, 2, 1, 1))) == ["f", "f_mean", "f_std"]
    for sets in ("", "abe"):
        with pytest.raises(ValueError, match=f"sets={sets}: take letters of abcd"):
            summaries("f", torch.zeros(1, 2, 6, 6), sets)


def test_gradients_reach_the_images_and_no_weight():
    encoder = tiny_encoder(resolution=16, patch=2).double()
    features = DriftFeatures(encoder)
    x = uniform("images", count=2 * 3 * 256, low=-1.0).view(2, 3, 16, 16).requires_grad_()
    weights = {name: normal(name, shape=tuple(value.shape)) for name, value in features(x).items()}

    def value(images):
        return sum((weights[name] * found).sum() for name, found in features(images).items())

    (gradient,) = torch.autograd.grad(value(x), x)
    direction = normal("direction", shape=tuple(x.shape))
    with torch.no_grad():
        slope = (value(x + 1e-7 * direction) - value(x - 1e-7 * direction)) / 2e-7
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)
    assert not any(weight.requires_grad for weight in features.parameters())
    assert not features.train().encoder.training


def test_gradients_of_flat_images_are_finite(encoder):
    x = torch.zeros(2, 3, 32, 32, requires_grad=True)
    sum(found.square().sum() for found in mae_features(encoder, x).values()).backward()
    assert x.grad.isfinite().all()


def test_half_precision_comes_out_wide(encoder, golden):
    half = tiny_encoder()
    half.load_state_dict(encoder.state_dict())
    found = mae_features(half.bfloat16(), golden["x"])
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert relative(found["layer1_mean_2"], mae_features(encoder, golden["x"])["layer1_mean_2"]) < 0.05


def test_pixels_alone():
    x = normal("x", shape=(2, 4, 8, 8))
    (name, value), *others = DriftFeatures()(x).items()
    assert (name, value.shape, others) == ("global", (2, 1, 256), [])
    assert torch.equal(value, pixel_features(x)["global"])
    DriftFeatures().check(7, 5)


def test_encoders_that_do_not_fit_are_named(encoder):
    channels = r"trained on 3 channels, these images have 1; set data\.channels=3, or take an encoder"
    sides = r"trained at 32 x 32 pixels, these images have 64 x 64; set data\.resolution=32, or train"
    with pytest.raises(ValueError, match=channels):
        mae_features(encoder, torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=sides):
        mae_features(encoder, torch.zeros(1, 3, 64, 64))
    features = DriftFeatures(encoder)
    features.check(3, 32)
    with pytest.raises(UserError, match=channels):
        features.check(1, 32)
    with pytest.raises(UserError, match=sides):
        features.check(3, 64)
    with pytest.raises(UserError, match=r"data\.channels=4: Identity takes images"):
        DriftFeatures(convnext=torch.nn.Identity()).check(4, 32)
    with pytest.raises(ValueError, match="every_block=0"):
        DriftFeatures(encoder, every_block=0)
    with pytest.raises(ValueError, match="sets=xy"):
        DriftFeatures(encoder, sets="xy")


# ConvNeXt


@pytest.fixture(scope="module")
def convnext():
    """A small ConvNeXt-V2 of which no weight is zero."""
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(ATTO, num_classes=0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.add_(normal(name, shape=tuple(weight.shape), dtype=torch.float32) * 0.05)
    return network.eval().requires_grad_(False)


def resize_matrix(old, new):
    """Rows of weights: a triangle around every new pixel, as wide as the larger of the new pixel and the old one."""
    step = old / new
    places = (np.arange(new) + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)) / max(step, 1))
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).float()


def by_hand(weights, images):
    """The network from its weights alone: the raw map of every stage, and the last norm of the pooled one."""

    def norm(x, name):  # over channels
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def mix(x, name):  # 1 x 1 convolution
        matrix, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
        return torch.einsum("oc,bchw->bohw", matrix, x) + bias[:, None, None]

    maps, x = [], norm(F.conv2d(images, weights["stem.0.weight"], weights["stem.0.bias"], stride=4), "stem.1")
    for i in range(4):
        here = f"stages.{i}"
        if i:
            x = norm(x, f"{here}.downsample.0")
            x = F.conv2d(x, weights[f"{here}.downsample.1.weight"], weights[f"{here}.downsample.1.bias"], stride=2)
        blocks = {name.split(".")[3] for name in weights if name.startswith(f"{here}.blocks")}
        for block in (f"{here}.blocks.{j}" for j in range(len(blocks))):
            kernel, bias = weights[f"{block}.conv_dw.weight"], weights[f"{block}.conv_dw.bias"]
            y = F.conv2d(x, kernel, bias, padding=3, groups=x.shape[1])
            y = F.gelu(mix(norm(y, f"{block}.norm"), f"{block}.mlp.fc1"))
            length = (y.square().sum((2, 3), keepdim=True) + 1e-6).sqrt()  # the official response norm
            share = length / (length.mean(1, keepdim=True) + 1e-6)
            scale, bias = (weights[f"{block}.mlp.grn.{kind}"].flatten()[:, None, None] for kind in ("weight", "bias"))
            x = x + mix(scale * (y * share) + bias + y, f"{block}.mlp.fc2")
        maps.append(x)
    return maps, norm(x.mean((2, 3), keepdim=True), "head.norm").flatten(1)


@pytest.mark.parametrize("side", [32, 256])
def test_convnext_features_by_hand(convnext, side):
    images = uniform("pictures", count=2 * 3 * side**2, low=-1.0, dtype=torch.float32).view(2, 3, side, side)
    found = convnext_features(convnext, images)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grow = resize_matrix(side, 224)
    seen = grow @ (((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]) @ grow.T
    maps, pooled = by_hand(convnext.state_dict(), seen)
    names = [f"convnext_stage_{i}{kind}" for i in range(4) for kind in ("", "_mean", "_std")][1:]
    assert list(found) == [*names, "convnext_global_mean", "convnext_global_std"]
    for i, x in enumerate(maps):
        y = x.flatten(2).transpose(1, 2)
        y = (y - y.mean(2, keepdim=True)) / (y.std(2, keepdim=True, unbiased=False) + 1e-3)
        if i:
            assert relative(found[f"convnext_stage_{i}"], y) < 2e-4
        assert relative(found[f"convnext_stage_{i}_mean"], y.mean(1, keepdim=True)) < 2e-4
        assert relative(found[f"convnext_stage_{i}_std"], (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()) < 2e-4
    assert relative(found["convnext_global_mean"], pooled[:, None]) < 2e-4
    assert torch.equal(found["convnext_global_std"], found["convnext_stage_3_std"])


def test_convnext_by_file_is_frozen_and_lets_gradients_through(convnext, tmp_path):
    save_file(convnext.state_dict(), tmp_path / "model.safetensors")
    maps = ConvNeXtMaps(ATTO, str(tmp_path / "model.safetensors"))
    grey = uniform("grey", count=2 * 256, low=-1.0, dtype=torch.float32).view(2, 1, 16, 16).requires_grad_()
    features = DriftFeatures(convnext=maps)
    found = features(grey)
    assert len(found) == 1 + 13
    colour = convnext_features(convnext, grey.detach().expand(-1, 3, -1, -1))
    assert all(torch.equal(found[name], value) for name, value in colour.items())
    sum(value.square().sum() for value in found.values()).backward()
    assert grey.grad.isfinite().all()
    assert grey.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in features.parameters())
    assert not features.train().convnext.net.training
    with pytest.raises(UserError, match=r"no such file; get .* or take drifting's features without ConvNeXt"):
        ConvNeXtMaps(ATTO, str(tmp_path / "other.safetensors"))


# Any network of timm


def test_maps_of_a_network_of_timm(tmp_path):
    save_file(weights_of(SMALL), tmp_path / "maps.safetensors")
    encoder = TimmMember(SMALL, weights=str(tmp_path / "maps.safetensors"), side=64)
    features = published_maps(TimmMaps(encoder), source=DIGITS, cache_dir=None)
    grey = uniform("grey", count=2 * 256, low=-1.0, dtype=torch.float32).view(2, 1, 16, 16).requires_grad_()
    found = features(grey)
    assert torch.equal(found["global"], pixel_features(grey)["global"])
    for i, x in enumerate(encoder.maps(grey.expand(-1, 3, -1, -1))):
        y = x.flatten(2).mT
        y = (y - y.mean(2, keepdim=True)) / (y.std(2, keepdim=True, unbiased=False) + 1e-3)
        assert (f"map_{i}" in found) == (y.shape[1] <= 196)
        if y.shape[1] <= 196:
            torch.testing.assert_close(found[f"map_{i}"], y)
        torch.testing.assert_close(found[f"map_{i}_mean"], y.mean(1, keepdim=True))
        torch.testing.assert_close(found[f"map_{i}_std"], (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt())
    sum(value.square().sum() for value in found.values()).backward()
    assert grey.grad.isfinite().all()
    assert grey.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in features.parameters())
    assert not any(module.training for module in features.train().modules())
    with pytest.raises(UserError, match=r"data\.channels=4: TimmMaps takes images of 1 or 3 channels; take drifting's"):
        features.check(4, 32)


def test_per_place_of_flat_places_is_finite():
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    value = per_place(x)
    value.sum().backward()
    assert not value.any()
    assert x.grad.isfinite().all()


# The choices of conf/drift_features


def settings(**changes):
    numbers = {
        **{"seed": 0, "patch": 2, "base_channels": 32, "blocks": (1, 1, 1, 1), "cell": 2, "mask_fraction": 0.5},
        **{
            "class_weight": 0.1,
            "class_steps": 0,
            "class_warmup": 0,
            "steps": 1,
            "batch": 2,
            "lr": 1e-3,
            "warmup_steps": 0,
        },
        **{"weight_decay": 0.01, "clip": 2.0},
    }
    return MAESettings(**{**numbers, **changes})


def test_features_of_an_encoder_trained_on_the_data(tmp_path):
    features = trained_on_data(settings(), sets="ab", every_block=1, source=DIGITS, cache_dir=str(tmp_path))
    found = features(torch.zeros(2, 1, 8, 8))
    maps = ["conv1", *(f"layer{i}{end}" for i in (1, 2, 3, 4) for end in ("", "_blk1"))]
    assert set(found) == {"global", "norm_x", *(f"{name}{kind}" for name in maps for kind in ("", "_mean", "_std"))}
    assert not any(weight.requires_grad for weight in features.parameters())
    assert len(list((tmp_path / "encoders").glob("*.pt"))) == 1
    assert pixels_alone(source=DIGITS, cache_dir=None)(torch.zeros(2, 1, 8, 8)).keys() == {"global"}


def test_maps_of_a_classifier_of_the_data(tmp_path):
    numbers = {"side": 16, "features": 8, "steps": 1, "batch": 2, "lr": 1e-3, "warmup_steps": 0, "weight_decay": 0}
    classifier = ClassifierSettings(seed=1, shift=0, **numbers)
    source = replace(DIGITS, resolution=16)
    options = {"sets": "ab", "every_block": 1, "source": source, "cache_dir": str(tmp_path)}
    features = trained_on_data(settings(), classifier=classifier, **options)
    x = normal("x", shape=(2, 1, 16, 16), dtype=torch.float32).requires_grad_()
    found = features(x)
    assert found.keys() - trained_on_data(settings(), **options)(x).keys() == {
        f"classifier_{i}{kind}" for i in range(3) for kind in ("", "_mean", "_std")
    }
    body = features.convnext.classifier.body
    for i, (end, places, channels) in enumerate(((3, 64, 24), (6, 16, 48), (9, 4, 96))):
        y = body[:end](x).flatten(2).mT
        y = (y - y.mean(2, keepdim=True)) / (y.std(2, keepdim=True, unbiased=False) + 1e-3)
        assert y.shape == (2, places, channels)
        torch.testing.assert_close(found[f"classifier_{i}"], y)
        torch.testing.assert_close(found[f"classifier_{i}_mean"], y.mean(1, keepdim=True))
    found["classifier_2"].square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in features.parameters())
    with pytest.raises(UserError, match=r"classifier\.architecture=mlp: it has no maps; take convolutional"):
        trained_on_data(settings(), classifier=replace(classifier, architecture="mlp"), **options)
    with pytest.raises(UserError, match=r"classifier and drift_features\.convnext are both set; set one to null"):
        trained_on_data(settings(), classifier=classifier, convnext=torch.nn.Identity(), **options)


def test_features_of_a_released_folder(tmp_path):
    network = MAE(resolution=32, channels=1, patch=1, base_channels=32, blocks=(1, 1, 1, 1), classes=3)
    init_weights(network, lambda name: rng.generator("released", name))
    write(tmp_path / "ema_params.msgpack", nested(mae_in_flax(network)))
    config = {"base_channels": 32, "layers": [1, 1, 1, 1], "in_channels": 1, "input_patch_size": 1, "num_classes": 3}
    (tmp_path / "metadata.json").write_text(json.dumps({"model_config": config}))
    digits = replace(DIGITS, resolution=32)
    features = released(str(tmp_path), sets="abcd", every_block=2, source=digits, cache_dir=None)
    x = normal("x", shape=(1, 1, 32, 32), dtype=torch.float32)
    wanted = mae_features(network.encoder, x)
    assert features(x).keys() == wanted.keys()
    assert all(torch.equal(features(x)[name], value) for name, value in wanted.items())
    with pytest.raises(UserError, match=r"trained at 32 x 32 pixels, .* 8 x 8; set data\.resolution=32"):
        features.check(DIGITS.channels, DIGITS.resolution)
    with pytest.raises(UserError, match=r"drift_features\.path is not set"):
        released(None, sets="abcd", every_block=2, source=DIGITS, cache_dir=None)
    with pytest.raises(UserError, match="nothing: no such file; give an ema_params"):
        released(str(tmp_path / "nothing"), sets="abcd", every_block=2, source=DIGITS, cache_dir=None)


def test_features_of_a_run(tmp_path):
    cfg = compose(["model=mae_tiny", "data=digits", "data.resolution=16", "backbone.blocks=[1,1,1,1]"])
    network = MAE(resolution=16, channels=1, patch=4, base_channels=32, blocks=(1, 1, 1, 1), classes=10)
    init_weights(network, lambda name: rng.generator("run", name))
    averages = {name: weight + 0.1 for name, weight in network.state_dict().items()}
    state = {"config": OmegaConf.to_container(cfg, resolve=True), "ema": {"0.5k": averages}, "state_dict": {}}
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "last.ckpt"
    torch.save(state, path)
    features = trained_by_run(
        str(tmp_path), sets="abcd", every_block=2, source=replace(DIGITS, resolution=16), cache_dir=None
    )
    network.load_state_dict(averages)
    x = normal("x", shape=(2, 1, 16, 16), dtype=torch.float32)
    wanted = mae_features(network.encoder, x)
    assert all(torch.equal(features(x)[name], value) for name, value in wanted.items())
    with pytest.raises(UserError, match=r"trained at 16 x 16 pixels, .* 8 x 8"):
        features.check(DIGITS.channels, DIGITS.resolution)
    state["config"]["backbone"]["_target_"] = "pmf_lightning.models.vit.ViT"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"its network is pmf_lightning\.models\.vit\.ViT, not an MAE"):
        run_encoder(path)
    torch.save({"weights": 3}, path)
    with pytest.raises(UserError, match=r"not a checkpoint of pmf_lightning \(it lacks 'config'\)"):
        run_encoder(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        run_encoder(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint"):
        run_encoder(tmp_path / "other")
    with pytest.raises(UserError, match=r"drift_features\.path is not set"):
        trained_by_run(None, sets="abcd", every_block=2, source=DIGITS, cache_dir=None)
