"""Members of a battery that need no download: a classifier of the data at hand, and the pixels."""

from copy import deepcopy

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.battery.battery import FEATURES
from pmf_lightning.encoders.classifier.network import Classifier
from pmf_lightning.encoders.classifier.train import ClassifierSettings, cached_classifier
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import at_least_float32

Images = Float[Tensor, "n c h w"]


class ClassifierMember(Encoder):
    """The last hidden layer of the small classifier of the data (encoders/classifier), of images of any size."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.body, self.largest = deepcopy(classifier.body), classifier.side
        self.freeze()

    def encode(self, images: Images) -> dict[str, Float[Tensor, "n d"]]:
        """Return "features"; images are averaged down to the classifier's size."""
        pixels = images.to(next(self.parameters()).dtype)
        side = min(self.largest, pixels.shape[-1])
        if pixels.shape[-1] != side:
            pixels = functional.adaptive_avg_pool2d(pixels, side)
        return {FEATURES: at_least_float32(self.body(pixels))}


def classifier_member(
    settings: ClassifierSettings, seed: int, *, source: DataSource, cache_dir: str | None
) -> ClassifierMember:
    """Return the features of a classifier of ``source``, trained with ``seed`` or read from the cache.

    Raises UserError for data with fewer than two classes, or of latents.
    """
    if source.classes < 2:
        raise UserError(f"data {source.name} has {source.classes} class, and a classifier needs at least 2")
    from_seed = ClassifierSettings(**{**vars(settings), "seed": seed})
    return ClassifierMember(cached_classifier(source, from_seed, cache_dir))


class PixelMember(Encoder):
    """The pixels, averaged to ``size`` x ``size``, as one vector."""

    def __init__(self, size: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"size={size}: it is 1 pixel or more")
        self.size = size

    def encode(self, images: Images) -> dict[str, Float[Tensor, "n d"]]:
        """Return "features"."""
        return {FEATURES: functional.adaptive_avg_pool2d(at_least_float32(images), self.size).flatten(1)}

    def fingerprint(self) -> str:
        """Return the class with the size."""
        return f"{type(self).__name__} {self.size}"
