"""Encoders that need no published weights: raw pixels, and networks trained on the data at hand.

Those trained on the data are ``_partial_`` in conf/encoder and get ``source`` and ``cache_dir`` from
encoders.build.complete.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch.nn import functional

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.battery.member import Images, Member, Vectors, number_of_weights, resized
from pmf_lightning.encoders.classifier.train import ClassifierSettings, cached_classifier, classes_of
from pmf_lightning.encoders.drifting.train_mae import MAESettings, cached_mae
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate


class Pixels(Member):
    """The pixels, averaged down to ``side`` pixels (area) and flattened; smaller images are not enlarged.

    ``source`` states the channels and the size of the images. Raises UserError for a side below 1.
    """

    channels = None

    def __init__(self, side: int, *, source: DataSource, cache_dir: str | None = None):
        super().__init__()
        if side < 1:
            raise UserError(f"battery.members: side={side}: images have at least 1 pixel")
        self.reduced_to = min(side, source.resolution)
        self.width, self.facts = source.channels * self.reduced_to**2, (self.reduced_to,)
        self.freeze()

    @classmethod
    def count(cls, settings: Mapping[str, Any], source: DataSource) -> int:
        """Return 0: pixels have no weights."""
        return 0

    def vectors(self, images: Images) -> Vectors:
        """Return the pixels in [-1, 1], [n, C side side]."""
        return functional.adaptive_avg_pool2d(images, self.reduced_to).flatten(1)


class ClassifierMember(Member):
    """Last hidden layer of a small classifier of the data, which is trained in seconds and cached.

    Settings with another ``seed`` or ``architecture`` make another encoder. With one class it tells quarter turns apart
    (encoders/classifier/train.py). Raises UserError for latents.
    """

    channels = None

    def __init__(self, settings: ClassifierSettings, *, source: DataSource, cache_dir: str | None):
        super().__init__()
        self.net = deepcopy(cached_classifier(source, settings, cache_dir))
        self.width, self.facts = settings.features, (settings.architecture, self.net.side)
        self.freeze()

    @classmethod
    def count(cls, settings: Mapping[str, Any], source: DataSource) -> int:
        """Return the number of weights of the classifier."""
        return number_of_weights(instantiate(settings["settings"]).network(source.channels, classes_of(source)))

    def vectors(self, images: Images) -> Vectors:
        """Return the last hidden layer, [n, features]."""
        return self.net.body(self.net.reduced(images.to(self.net.head.weight.dtype)))


class MAEMember(Member):
    """Mean over the last map of the small masked autoencoder of the data (encoders/drifting), trained and cached.

    Images are resized to the data's resolution. Raises UserError if the autoencoder cannot be built or trained.
    """

    channels = None

    def __init__(self, settings: MAESettings, *, source: DataSource, cache_dir: str | None):
        super().__init__()
        self.net = deepcopy(cached_mae(source, settings, cache_dir).encoder)
        self.width = len(self.net.stages[-1].norm.weight)
        self.freeze()

    @classmethod
    def count(cls, settings: Mapping[str, Any], source: DataSource) -> int:
        """Return the number of weights of the encoder."""
        return number_of_weights(instantiate(settings["settings"]).network(source).encoder)

    def vectors(self, images: Images) -> Vectors:
        """Return the mean of the last stage's output, [n, 8 base_channels]."""
        images = resized(images, self.net.resolution, "bilinear")
        return self.net(images.to(self.net.stem[0].weight.dtype))["layer4"].mean((2, 3))
