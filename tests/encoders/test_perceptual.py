"""Perceptual distances: values, gradients, weights by path, what is said where weights are missing, a real step."""

import json
import warnings
from dataclasses import replace
from urllib.error import URLError

import lpips
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from shrunk import RUN
from timm_weights import weights_of
from torch import nn
from torchvision.models import VGG16_Weights

from pmf_lightning import Batch, UserError, build, compose
from pmf_lightning.config.compose import choices
from pmf_lightning.data.transforms import to_float
from pmf_lightning.encoders.base import three_channels
from pmf_lightning.encoders.battery.lite0 import Lite0
from pmf_lightning.encoders.battery.timm_member import TimmMember
from pmf_lightning.encoders.classifier.train import cached_classifier
from pmf_lightning.encoders.perceptual.convnext import ConvNeXtFeatures
from pmf_lightning.encoders.perceptual.feature_maps import MapDistance
from pmf_lightning.encoders.perceptual.lpips import LPIPS
from pmf_lightning.pipeline.checkpoints import load_checkpoint
from pmf_lightning.pipeline.parts import make_objective
from pmf_lightning.train import train
from pmf_lightning.training.prepare import make_encoders
from pmf_lightning.utils import rng
from pmf_lightning.utils.hydra_compat import instantiate

ATTO = "convnextv2_atto.fcmae_ft_in1k"
SMALL, HALF = "test_efficientnet.r160_in1k", (0.5, 0.5, 0.5)
VGG_CHANNELS = [3, 64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512]
TINY_CLASSIFIER = ["perceptual=classifier", "features.classifier.settings.steps=3"]


def encoders_of(cfg, source):
    return make_encoders(cfg, source, make_objective(cfg))


def normal(name, *shape):
    return torch.randn(shape, generator=rng.generator("perceptual", name))


def pair(channels=3, side=32, n=3):
    return (rng.uniform("pair", count=2 * n * channels * side**2) * 2 - 1).float().view(2, n, channels, side, side)


def vgg_state():
    """Random weights under torchvision's names, a weight of its head among them."""
    state, layer, inputs = {"classifier.6.bias": torch.zeros(1000)}, 0, 3
    for outputs in VGG_CHANNELS[1:]:
        if outputs:
            std = (2 / (9 * inputs)) ** 0.5
            state[f"features.{layer}.weight"] = normal(f"{layer} weight", outputs, inputs, 3, 3) * std
            state[f"features.{layer}.bias"] = normal(f"{layer} bias", outputs) * 0.1
            inputs = outputs
        layer += 2 if outputs else 1
    return state


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg16-397923af.pth"
    torch.save(vgg_state(), path)
    return path


@pytest.fixture(scope="module")
def convnext():
    """A small ConvNeXt-V2 of which no weight is zero, with its head."""
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(ATTO, num_classes=7)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.add_(normal(name, *weight.shape) * 0.05)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def convnext_file(convnext, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(convnext.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def digits_cfg(tmp_path_factory):
    return compose([*TINY_CLASSIFIER, f"cache_dir={tmp_path_factory.mktemp('cache')}"])


@pytest.fixture(scope="module")
def maps_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "maps.safetensors"
    save_file(weights_of(SMALL), path)
    return path


@pytest.fixture(scope="module")
def distances(vgg_file, convnext_file, digits_cfg, maps_file):
    return {
        "maps": MapDistance(TimmMember(SMALL, weights=str(maps_file), side=32, mean=HALF, std=HALF), 32),
        "lpips": LPIPS(str(vgg_file), 32),
        "convnext": ConvNeXtFeatures(ATTO, str(convnext_file), 32),
        "classifier": encoders_of(digits_cfg, instantiate(digits_cfg.data))["classifier"],
    }


@pytest.fixture(params=["lpips", "convnext", "classifier", "maps"])
def name(request):
    return request.param


def images_for(name, **options):
    sizes = {"lpips": (3, 16), "convnext": (3, 32), "classifier": (1, 32), "maps": (1, 32)}
    return pair(*sizes[name], **options)


def test_distance_of_equal_images_is_zero_and_of_others_is_not(distances, name):
    generated, real = images_for(name)
    distance = distances[name]
    assert torch.equal(distance(real, real), torch.zeros(3))
    assert (distance(generated, real) > 1e-3).all()
    torch.testing.assert_close(distance(generated, real), distance(real, generated))
    alone = torch.cat([distance(g[None], r[None]) for g, r in zip(generated, real, strict=True)])
    torch.testing.assert_close(distance(generated, real), alone)


def test_gradient_reaches_the_generated_images_alone(distances, name):
    generated, real = images_for(name)
    generated.requires_grad_()
    real.requires_grad_()
    distances[name](generated, real).sum().backward()
    assert generated.grad.isfinite().all()
    assert (generated.grad.flatten(1).norm(dim=1) > 1e-4).all()
    assert real.grad is None
    step = generated.detach() - 1e-3 * generated.grad / generated.grad.norm()
    assert distances[name](step, real).sum() < distances[name](generated, real).sum()


def test_networks_are_frozen_for_good(distances, name):
    distance = distances[name]
    assert not any(weight.requires_grad for weight in distance.parameters())
    nn.ModuleList([distance]).train()
    assert not any(module.training for module in distance.modules())


def test_half_precision_around_changes_little(distances, name):
    generated, real = images_for(name)
    generated, real = generated[:1], real[:1]
    exact = distances[name](generated, real)
    with torch.autocast("cpu", torch.bfloat16):
        rough = distances[name](generated, real)
        assert torch.equal(distances[name](real, real), torch.zeros(1))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


def test_images_of_other_floats_are_taken(distances, name):
    generated, real = images_for(name)
    wide = distances[name](generated.double(), real.double())
    torch.testing.assert_close(wide, distances[name](generated, real))


def test_lpips_is_that_of_the_package(distances, vgg_file):
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        package = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    state = vgg_state()
    for part in package.net.children():
        for index, layer in part.named_children():
            if isinstance(layer, nn.Conv2d):
                layer.weight, layer.bias = (
                    nn.Parameter(state[f"features.{index}.{kind}"]) for kind in ("weight", "bias")
                )
    calibration = lpips.__path__[0] + "/weights/v0.1/vgg.pth"
    package.load_state_dict(torch.load(calibration, map_location="cpu"), strict=False, assign=True)
    generated, real = pair(side=16)
    wanted = package(generated, real).flatten()  # [-1, 1] is what the package takes unless told otherwise
    torch.testing.assert_close(distances["lpips"](generated, real), wanted, rtol=1e-5, atol=0)
    shifted = package(generated / 2 + 0.5, real / 2 + 0.5).flatten()
    assert not torch.allclose(shifted, wanted, rtol=0.05), "the range of the images matters"


def test_lpips_has_a_gradient_where_all_features_are_zero(tmp_path):
    state = {name: -value.abs() if "bias" in name else value * 0 for name, value in vgg_state().items()}
    torch.save(state, tmp_path / "dead.pth")
    generated, real = pair(side=16, n=1)
    generated.requires_grad_()
    LPIPS(str(tmp_path / "dead.pth"), 16)(generated, real).sum().backward()
    assert generated.grad.isfinite().all()


def test_convnext_compares_pooled_normalised_features(distances, convnext):
    generated, real = pair()

    def features(x):  # straight from [-1, 1]
        return convnext.head.norm(convnext.forward_features(x).mean((2, 3), keepdim=True)).flatten(1)

    wanted = (features(generated) - features(real)).square().sum(1)
    torch.testing.assert_close(distances["convnext"](generated, real), wanted, rtol=1e-5, atol=0)


def test_classifier_compares_four_layers(distances, digits_cfg):
    settings = instantiate(digits_cfg.features.classifier.settings)
    body = cached_classifier(instantiate(digits_cfg.data), settings, digits_cfg.cache_dir).body
    for layer in body:
        if isinstance(layer, nn.GroupNorm):
            layer.eps = digits_cfg.features.classifier.norm_eps
    generated, real = images_for("classifier")
    wanted = torch.zeros(3)
    for depth in (3, 6, 9, len(body)):
        assert isinstance(body[depth - 1], nn.SiLU)
        wanted += (body[:depth](generated) - body[:depth](real)).square().view(3, -1).mean(1)
    torch.testing.assert_close(distances["classifier"](generated, real), wanted, rtol=1e-5, atol=0)


def test_classifier_has_a_moderate_gradient_at_grey_images(distances):
    generated, real = images_for("classifier")

    def steepness(images):
        images = images.clone().requires_grad_()
        return torch.autograd.grad(distances["classifier"](images, real).sum(), images)[0].norm()

    assert steepness(0 * generated) < 100 * steepness(generated)  # with torch's own eps it is 6000 times


@pytest.mark.parametrize(("resolution", "side"), [(16, 16), (64, 32)])
def test_classifier_wants_no_more_pixels_than_it_was_trained_on(resolution, side, tmp_path):
    cfg = compose([*TINY_CLASSIFIER, f"data.resolution={resolution}", f"cache_dir={tmp_path}"])
    assert encoders_of(cfg, instantiate(cfg.data))["classifier"].side == side


def test_the_judge_is_not_the_trainer():
    cfg = compose(["perceptual=classifier", "metrics=small"])
    assert cfg.features.classifier.settings.seed != cfg.metrics.classifier.seed


def test_maps_are_compared_at_unit_length(distances):
    generated, real = images_for("maps")

    def unit(x):
        return x / x.square().sum(1, keepdim=True).sqrt()

    maps = [distances["maps"].encoder.maps(images.expand(-1, 3, -1, -1)) for images in (generated, real)]
    wanted = sum((unit(a) - unit(b)).square().sum(1).flatten(1).mean(1) for a, b in zip(*maps, strict=True))
    torch.testing.assert_close(distances["maps"](generated, real), wanted)


@pytest.mark.slow
def test_lite0_is_a_perceptual_loss_of_a_run(tmp_path):
    file = tmp_path / "lite0.safetensors"
    save_file(weights_of("tf_efficientnet_lite0.in1k"), file)
    lite0 = ["perceptual=lite0", f"features.lite0.encoder.weights={file}", "features.lite0.side=32"]
    cfg = compose([*RUN, *lite0, "steps=2", f"run_dir={tmp_path / 'run'}"])
    encoders = encoders_of(cfg, instantiate(cfg.data))
    assert isinstance(encoders["lite0"].encoder, Lite0)
    assert encoders["lite0"].encoder.input_side == encoders["lite0"].side == 32
    train(cfg)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [0 < row["lite0"] < 20 for row in rows] == [True, True]


@pytest.mark.parametrize("name", ["lpips", "convnext"])
def test_grey_images_stand_for_colours(distances, name):
    generated, real = pair(channels=1)
    wanted = distances[name](generated.repeat(1, 3, 1, 1), real.repeat(1, 3, 1, 1))
    torch.testing.assert_close(distances[name](generated, real), wanted)
    with pytest.raises(ValueError, match="2 channels"):
        three_channels(torch.zeros(1, 2, 8, 8))


def test_weights_by_path_are_those_of_the_file_and_the_generator_stays(vgg_file, convnext, convnext_file):
    before = torch.random.get_rng_state()
    kernels = [value for value in LPIPS(str(vgg_file), 32).net.parameters() if value.ndim == 4]
    assert all(map(torch.equal, kernels, [v for n, v in vgg_state().items() if n.endswith("weight")]))
    assert len(kernels) == 13
    state = ConvNeXtFeatures(ATTO, str(convnext_file), 32).net.state_dict()
    assert state.keys() == {name for name in convnext.state_dict() if not name.startswith("head.fc")}
    assert all(torch.equal(value, convnext.state_dict()[name]) for name, value in state.items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_convnext_reads_the_original_release(convnext, convnext_file, tmp_path):
    names = [  # timm's -> those of the original files, in order
        ("stem.", "downsample_layers.0."),
        (".blocks.", "."),
        ("conv_dw", "dwconv"),
        ("mlp.fc", "pwconv"),
        ("mlp.grn.weight", "grn.gamma"),
        ("mlp.grn.bias", "grn.beta"),
        ("head.norm", "norm"),
        ("head.fc", "head"),
    ]
    state = {}
    for name, value in convnext.state_dict().items():
        if ".downsample." in name:
            name = "downsample_layers." + name.removeprefix("stages.").replace("downsample.", "")
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        linear = name.endswith(("pwconv1.weight", "pwconv2.weight"))
        state[name] = value.flatten(1) if linear else value.view(1, 1, 1, -1) if "grn" in name else value
    torch.save({"model": state}, tmp_path / "original.pt")
    generated, real = pair()
    values = [ConvNeXtFeatures(ATTO, str(p), 32)(generated, real) for p in (tmp_path / "original.pt", convnext_file)]
    torch.testing.assert_close(*values)


def test_the_librarys_own_copy_is_used_without_a_path(vgg_file, convnext_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / vgg_file.name).symlink_to(vgg_file)
    generated, real = pair()
    assert torch.equal(LPIPS(None, 32)(generated, real), LPIPS(str(vgg_file), 32)(generated, real))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    home = tmp_path / f"models--timm--{ATTO}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "snapshots" / commit / "model.safetensors").symlink_to(convnext_file)
    own, given = (ConvNeXtFeatures(ATTO, path, 32)(generated, real) for path in (None, str(convnext_file)))
    assert torch.equal(own, given)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Downloads fail, and nothing was downloaded before."""

    def refused(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("perceptual", "said"),
    [
        ("lpips", ["vgg16-397923af.pth", VGG16_Weights.IMAGENET1K_V1.url, "features.lpips.weights"]),
        ("convnext", ["timm/convnextv2_base.fcmae_ft_in22k_in1k", "model.safetensors", "features.convnext.weights"]),
    ],
)
def test_missing_weights_end_a_run_before_it_begins(perceptual, said, no_network, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        train(compose([*RUN, f"perceptual={perceptual}", f"run_dir={run}"]))
    message = str(caught.value)
    assert all(part in message for part in [*said, "perceptual=none"]), message
    assert "\n" not in message
    assert not run.exists()


def test_files_that_are_no_weights_are_refused(vgg_file, convnext_file, tmp_path):
    cfgs = {name: compose([f"perceptual={name}"]) for name in ("lpips", "convnext")}
    digits = instantiate(cfgs["lpips"].data)

    def refusal(name, key, value):
        cfg = OmegaConf.merge(cfgs[name], {"features": {name: {key: str(value)}}})
        with pytest.raises(UserError) as caught:
            encoders_of(cfg, digits)
        return str(caught.value)

    missing = refusal("lpips", "weights", tmp_path / "none.pth")
    assert "none.pth: no such file" in missing
    assert "vgg16-397923af.pth" in missing
    (tmp_path / "text.pth").write_text("hello")
    assert "cannot be read as weights" in refusal("lpips", "weights", tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in refusal("lpips", "weights", tmp_path / "list.pth")
    assert "features.0.weight is missing, 26 of 26" in refusal("lpips", "weights", convnext_file)
    assert "stem.0.weight is missing" in refusal("convnext", "weights", vgg_file)
    assert "is of shape (40, 3, 4, 4)" in refusal("convnext", "weights", convnext_file)
    assert "convnextv2_base.fcmae" in refusal("convnext", "network", "convnextv2_base.fcmae_ft")


def test_what_does_not_fit_is_refused(digits_cfg):
    digits = instantiate(digits_cfg.data)

    def refused(match, weights, source=digits):
        cfg = OmegaConf.create(OmegaConf.to_container(digits_cfg))
        cfg.objective.perceptual = weights
        with pytest.raises(UserError, match=match):
            encoders_of(cfg, source)

    refused(r"features\.clasifier: .* did you mean classifier\?", {"clasifier": 1})
    refused(r"objective\.perceptual\.classifier=0: a weight is above 0", {"classifier": 0})
    refused(r"data\.channels=4: .*perceptual=none", {"classifier": 1}, replace(digits, channels=4))


def test_choices_do_not_mix():
    cfgs = {name: compose([f"perceptual={name}"]) for name in choices("perceptual")}
    assert {name: set(cfg.objective.perceptual) for name, cfg in cfgs.items()} == {
        "none": set(),
        "paper": {"lpips", "convnext"},
        "lpips": {"lpips"},
        "convnext": {"convnext"},
        "classifier": {"classifier"},
        "lite0": {"lite0"},
    }
    assert all(set(cfg.features) == set(cfg.objective.perceptual) for cfg in cfgs.values())
    assert cfgs["paper"].objective.perceptual == {"lpips": 0.4, "convnext": 0.1}
    for cfg in cfgs.values():
        assert (list(cfg.objective.crop.area), list(cfg.objective.crop.ratio)) == ([0.08, 1.0], [3 / 4, 4 / 3])


def test_training_with_the_classifier(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PMF_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    train(compose([*RUN, *TINY_CLASSIFIER, "steps=2", f"run_dir={run}"]))
    assert "perceptual loss where t < 0.8, in random crops: 0.4 classifier (32 pixels)" in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [0 < row["classifier"] < 100 for row in rows] == [True, True]
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    own = dict(load_checkpoint(run).network.named_parameters())  # neither here are features needed
    assert kept["state_dict"].keys() == {f"network.{key}" for key in own}
    assert all(average.keys() <= own.keys() for average in kept["ema"].values())


def test_the_classifier_teaches_the_head_of_u_alone(digits_cfg):
    cfg = OmegaConf.merge(compose([*RUN, "perceptual=classifier"]), {"features": digits_cfg.features})
    cfg.cache_dir = digits_cfg.cache_dir
    module, source = build(cfg), instantiate(cfg.data)
    images, labels = source.train().batch(range(16))
    batch = Batch(to_float(images), labels)
    draw = module.objective.draw(batch, seed=0, step=0)

    def gradients(objective, features):
        losses = objective(module.network, batch, draw, features)
        heads = [head.out.bias for head in module.network.heads.values()]
        return losses, dict(zip(module.network.heads, torch.autograd.grad(losses.total, heads), strict=True))

    losses, taught = gradients(module.objective, encoders_of(cfg, source))
    _, plain = gradients(replace(module.objective, perceptual={}), {})
    near = draw.t < module.objective.t_thr
    assert 0 < near.sum() < 16
    assert torch.equal(losses.distances["classifier"] > 0, near)
    assert torch.equal(taught["v"], plain["v"])
    assert (taught["u"] - plain["u"]).norm() > 1e-3 * plain["u"].norm()


def test_distances_are_outside_the_module(distances):
    module = build(compose(["model=pmf_tiny"]))
    own = [name for name, _ in module.named_parameters()]
    module.set_encoders(distances)
    assert [name for name, _ in module.named_parameters()] == own == list(module.state_dict())
    assert all(name.startswith("network.") for name in own)
    module.on_fit_start()
    assert module.encoders is distances
