"""One interface of encoders: names and shapes of features, gradients for images, fingerprints, the checks of a run."""

import pytest
import torch
from common import normal
from features_of_tests import Tiny

from pmf_lightning import UserError, compose
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.encoders.base import extract
from pmf_lightning.encoders.build import build_encoders, complete
from pmf_lightning.encoders.classifier.network import Classifier
from pmf_lightning.encoders.drifting.extractor import DriftFeatures
from pmf_lightning.encoders.perceptual.classifier import ClassifierDistance
from pmf_lightning.objectives.base import EncoderRequest

DIGITS = Digits("digits", 8, 1, 10, 360)


def distance(seed=0):
    return ClassifierDistance(Classifier(1, 10, 12, seed, 8), 8, 0.1)


@pytest.mark.parametrize("encoder", [distance(), DriftFeatures()])
def test_losses_share_one_interface(encoder):
    images = normal("images", shape=(3, 1, 8, 8), dtype=torch.float32).requires_grad_()
    found = encoder.train().encode(images)
    assert not encoder.training
    assert {name: tuple(values.shape[1:]) for name, values in found.items()} == encoder.shapes(1, 8)
    sum(values.sum() for values in found.values()).backward()
    assert images.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert encoder.fingerprint().startswith(type(encoder).__name__)


def test_fingerprints_tell_weights_apart():
    assert distance().fingerprint() == distance().fingerprint() != distance(1).fingerprint()


def test_an_extractor_of_evaluation_is_called_in_its_own_batches():
    cpu, levels = torch.device("cpu"), (torch.arange(5 * 3 * 64) % 256).view(5, 3, 8, 8).to(torch.uint8)
    network, sizes = Tiny().open(cpu), []
    found = extract(lambda part: sizes.append(len(part)) or network(part), levels, 2, cpu)
    assert sizes == [2, 2, 1]
    assert found.features.shape == (5, Tiny().features)
    assert (found.features - network(levels).features).abs().max() < 1e-6


def test_encoders_are_built_by_name():
    raw = compose(["model=drifting_tiny"]).drift_features
    assert isinstance(build_encoders(EncoderRequest("drift_features"), raw, DIGITS, None), DriftFeatures)
    group = {"own": {"_target_": "torch.nn.Identity"}}
    with pytest.raises(UserError, match=r"features\.own: Identity is no encoder; derive it from .*base\.Encoder"):
        build_encoders(EncoderRequest("features", ("own",)), group, DIGITS, None)
    with pytest.raises(UserError, match=r"features\.owm: there is no such encoder; did you mean own"):
        build_encoders(EncoderRequest("features", ("owm",)), group, DIGITS, None)
    assert complete("as it is", None, None) == "as it is"
