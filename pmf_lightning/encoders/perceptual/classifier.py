"""Perceptual distance in the features of a small classifier of the run's data; it needs no published weights."""

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.classifier.network import Classifier
from pmf_lightning.encoders.classifier.train import ClassifierSettings, cached_classifier
from pmf_lightning.encoders.pretrained import Distances, FrozenDistance, Square, check_channels
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number, at_least_float32


class ClassifierDistance(FrozenDistance):
    """Squared differences in the four layers of a classifier (encoders/classifier/network.py); not from a paper.

    They are averaged over channels and places of every layer, then summed over layers. Samples may be evaluated by the
    same architecture (metrics=small): use a different seed here, so that training and evaluation use different
    networks.

    ``norm_eps`` replaces the eps of the group norms. An untrained generator outputs an exactly grey image, whose
    features have no variance. With torch's 1e-5 the gradient of the first step was 1000 times that of later steps
    (pmf_digits), which stays in Adam's second moment for hundreds of steps. Images with contrast hardly change.
    """

    def __init__(self, classifier: Classifier, side: int, norm_eps: Number):
        super().__init__(side)
        self.layers = nn.ModuleList(_cut(deepcopy(classifier.body)))
        for layer in self.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.eps = norm_eps
        self.freeze()

    def encode(self, images: Square) -> dict[str, Tensor]:
        """Return every layer's features, [n, channels, ...]."""
        found, images = {}, images.to(next(self.parameters()).dtype)
        for i, layer in enumerate(self.layers):
            images = layer(images)
            found[f"layer{i}"] = at_least_float32(images)
        return found

    def compare(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Distances:
        """Return the distance of each pair, [n]."""
        return sum((ours[name] - theirs[name]).square().flatten(1).mean(1) for name in ours)


def classifier_features(
    settings: ClassifierSettings, norm_eps: Number, source: DataSource, cache_dir: str | None
) -> ClassifierDistance:
    """Return the distance in a classifier of ``source``'s training split, read from the cache folder or trained.

    Raises UserError if the data have fewer than two classes, or the classifier cannot be trained.
    """
    check_channels(source.channels)
    if source.classes < 2:
        raise UserError(
            f"perceptual=classifier: data {source.name} has {source.classes} class, and a classifier needs at least 2; "
            "set perceptual=none"
        )
    try:
        classifier = cached_classifier(source, settings, cache_dir)
    except UserError as error:
        raise UserError(f"perceptual=classifier (features.classifier.settings): {error}") from error
    return ClassifierDistance(classifier, min(settings.side, source.resolution), norm_eps)


def _cut(body: nn.Sequential) -> list[nn.Sequential]:
    """Split a network after each of its activations."""
    parts: list[list[nn.Module]] = [[]]
    for layer in body:
        parts[-1].append(layer)
        if isinstance(layer, nn.SiLU):
            parts.append([])
    return [nn.Sequential(*part) for part in parts if part]
