"""The resize before Inception: both rules against formulas written out here, per protocol, and in fingerprints."""

import json

import numpy as np
import pytest
import torch
from features_of_tests import Tiny, noise_levels, of_config, protocol, write_inception
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pmf_lightning import UserError, compose
from pmf_lightning.encoders.inception import Inception
from pmf_lightning.encoders.resizes import RESIZES
from pmf_lightning.evaluation.evaluator import Evaluator, check_same_features
from pmf_lightning.evaluation.references import Reference, load_reference, save_npz
from pmf_lightning.pipeline.parts import make_part

CPU = torch.device("cpu")
LEVELS = 0.0005  # of 255: how close the official codes' outputs are to torch's


def matrix(old, places):
    """[299, old]: bilinear weights at these places, which are clipped to the image."""
    rows = np.zeros((299, old))
    for i, place in enumerate(places):
        low = int(np.floor(place))
        for index, share in ((low, 1 - (place - low)), (low + 1, place - low)):
            rows[i, min(max(index, 0), old - 1)] += share
    return rows


def by_formula(rule, images):
    """Resize [b, c, h, w] in float64: output pixel i lies at i s, or at (i + 0.5) s - 0.5, with s = old / 299."""
    shift = {"tensorflow1": 0.0, "half_pixel": 0.5}[rule]
    down, across = (matrix(old, (np.arange(299) + shift) * (old / 299) - shift) for old in images.shape[2:])
    return down @ images.double().numpy() @ across.T


def pixels(*shape):
    """Whole levels of a few waves: of noise, float32's rounding of places alone would be above the tolerance."""
    count, channels, height, width = shape
    down, across = torch.arange(height)[:, None] / height, torch.arange(width) / width
    number = torch.arange(count * channels).view(count, channels, 1, 1)
    waves = (7 * down + 11 * across + number).sin() + (16 * across - 9 * down + 2 * number).cos()
    return (127.5 + 63 * waves).round()


@pytest.mark.parametrize(
    "shape", [(8, 8), (32, 32), (64, 64), (256, 256), (299, 299), (300, 300), (512, 512), (37, 410)]
)
@pytest.mark.parametrize("rule", RESIZES)
def test_both_rules_equal_their_formula(rule, shape):
    images = pixels(2, 1, *shape)
    resized = RESIZES[rule](images, 299)
    assert resized.shape == (2, 1, 299, 299)
    assert np.abs(resized.numpy() - by_formula(rule, images)).max() < LEVELS


@pytest.mark.parametrize("side", [32, 256, 512])
def test_half_pixel_equals_a_sampled_grid(side):
    """The codes of iMF and Drifting sample the grid of the identity, pixel centres at the borders' inside."""
    images = pixels(1, 2, side, side)
    grid = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 2, 299, 299], align_corners=False)
    sampled = torch.nn.functional.grid_sample(images, grid, "bilinear", "border", align_corners=False)
    torch.testing.assert_close(
        RESIZES["half_pixel"](images, 299), sampled, rtol=0, atol=0.005
    )  # coordinates in [-1, 1]
    assert (RESIZES["tensorflow1"](images, 299) - sampled).abs().max() > 0.2


def test_a_ramp_tells_the_rules_apart():
    """Along 0, 1, ..., 255 the value is the place: half a pixel of the difference in size lies between the rules."""
    ramp = torch.arange(256.0).expand(1, 1, 256, 256)
    tensorflow1, half_pixel = (RESIZES[rule](ramp, 299)[0, 0, 150] for rule in ("tensorflow1", "half_pixel"))
    places = torch.arange(299) * 256 / 299
    torch.testing.assert_close(tensorflow1, places.clamp(max=255), rtol=0, atol=LEVELS)
    torch.testing.assert_close(half_pixel, (places + 128 / 299 - 0.5).clamp(0, 255), rtol=0, atol=LEVELS)


def test_each_protocol_has_the_resize_of_its_code():
    rules = {name: of_config(name).resize for name in ("jit", "adm", "pmf_jax", "drifting")}
    assert rules == dict(jit="tensorflow1", adm="tensorflow1", pmf_jax="half_pixel", drifting="half_pixel")


@pytest.mark.parametrize(
    ("command", "overrides", "rule"),
    [
        ("evaluate", [], "tensorflow1"),
        ("evaluate", ["protocol=pmf_jax"], "half_pixel"),
        ("evaluate", ["protocol=drifting", "protocol.resize=tensorflow1"], "tensorflow1"),
        ("search_guidance", ["protocol=drifting"], "half_pixel"),
        ("make_stats", [], "tensorflow1"),
        ("make_stats", ["protocol=adm"], "tensorflow1"),
        ("make_stats", ["protocol=pmf_jax"], "half_pixel"),
        ("train", ["metrics=fid", "protocol=drifting"], "half_pixel"),
        ("train", ["metrics=fid"], "tensorflow1"),
    ],
)
def test_the_extractor_resizes_as_the_protocol_says(command, overrides, rule):
    overrides = [*overrides, *(["extractor=inception"] if command != "train" else [])]
    assert make_part(compose(overrides, command), "extractor").resize == rule


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "inception.pth"
    path.write_bytes(b"no weights, but bytes to digest")
    return str(path)


def reference(extractor, width=2048):
    said = {"extractor": extractor.fingerprint()}
    return Reference(torch.zeros(width).double(), torch.eye(width).double(), about=said, file={"path": "in256.npz"})


@pytest.mark.parametrize(("made", "wanted"), [("tensorflow1", "half_pixel"), ("half_pixel", "tensorflow1")])
def test_statistics_of_the_other_resize_are_refused(weights, made, wanted):
    made, wanted = (Inception("inception", weights, False, 8, rule) for rule in (made, wanted))
    check_same_features(reference(made), made, "pmf_jax")
    with pytest.raises(UserError) as refused:
        check_same_features(reference(made), wanted, "pmf_jax")
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("reference=in256.npz: made with the features inception-v3-compat 2048 ")
    assert "resized differently" in message
    assert f"make_stats protocol=pmf_jax ({wanted.resize})" in message


def test_statistics_of_before_this_rule_stay_those_of_tensorflow1(weights):
    ours = Inception("inception", weights, False, 8)
    assert len(ours.fingerprint().split()) == 3  # files that make_stats wrote before there were two rules
    assert ours.fingerprint() + " half_pixel" == Inception("inception", weights, False, 8, "half_pixel").fingerprint()


def test_other_weights_are_not_called_another_resize(weights, tmp_path):
    other = tmp_path / "other.pth"
    other.write_bytes(b"others")
    made, wanted = Inception("inception", str(other), False, 8), Inception("inception", weights, False, 8, "half_pixel")
    with pytest.raises(UserError, match=r"choose the extractor \(or its weights\)"):
        check_same_features(reference(made), wanted, "pmf_jax")


def test_an_extractor_that_resizes_otherwise_is_refused(weights):
    extractor = Inception("inception", weights, False, 8, "half_pixel")
    with pytest.raises(UserError, match=r"extractor.resize=half_pixel: protocol=jit resizes by tensorflow1"):
        Evaluator(protocol(), extractor, reference(extractor), 8)
    Evaluator(protocol(resize="half_pixel"), extractor, reference(extractor), 8)
    Evaluator(protocol(resize="half_pixel"), Tiny(), Reference(torch.zeros(6).double(), torch.eye(6).double()), 8)


def test_rules_that_are_none():
    with pytest.raises(UserError, match=r"protocol.resize=half: no such rule; .*half_pixel"):
        protocol(resize="half")
    with pytest.raises(UserError, match=r"extractor.resize=tensorflow: no such rule; did you mean tensorflow1"):
        Inception("inception", None, True, 8, "tensorflow").check()


def test_the_resize_is_stored_with_the_statistics(weights, tmp_path):
    extractor = Inception("inception", weights, False, 8, "half_pixel")
    path = tmp_path / "small.npz"
    save_npz(reference(extractor, 4), path)
    assert load_reference(path, "inception").about["extractor"].endswith(" half_pixel")
    assert json.loads(np.load(path)["about"].item())["extractor"] == extractor.fingerprint()


@pytest.mark.slow
def test_the_network_sees_the_resized_image(tmp_path):
    """What reaches the first layer is by rule; without a resize the features are torch-fidelity's own."""
    large = noise_levels("large", 3, (3, 299, 299))
    path = write_inception(tmp_path / "inception.pth", large)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
    small, made, resized = noise_levels("small", 2, (3, 40, 40)), {}, {}
    with torch.no_grad():
        wanted = theirs(large), theirs(small)
        for rule in RESIZES:
            network = Inception("inception", str(path), False, 8, rule).open(CPU)
            got = network(large), network(small)
            for ours, official in zip(got[0], wanted[0], strict=True):
                torch.testing.assert_close(ours, official, rtol=1e-5, atol=1e-5)
            same = torch.allclose(got[1].features, wanted[1][0], rtol=1e-5, atol=1e-5)
            assert same == (rule == "tensorflow1")
            made[rule] = got[1].features
            levels = torch.from_numpy(by_formula(rule, small)).round().to(torch.uint8)
            resized[rule] = network(levels).features  # but for the rounding to levels the same
    for rule, other in (list(RESIZES), list(RESIZES)[::-1]):
        near, far = ((resized[rule] - made[which]).abs().mean() for which in (rule, other))
        assert near < far / 2
