"""The training images nearest to a generated one in encoder space: is it a copy?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from omegaconf import OmegaConf
from torch import Tensor

from pmf_lightning.config.compose import compose
from pmf_lightning.data.dataset import ImageDataset, check_source, first_images
from pmf_lightning.encoders.classifier.train import cached_classifier
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.parts import build_part
from pmf_lightning.utils.errors import UserError

Levels = UInt8[Tensor, "n c h w"]
Embed = Callable[[Levels], Float[Tensor, "n f"]]
BATCH = 120  # images that are encoded at a time
GREY = 128
CLOSE = 0.95  # of held-out images are farther from their nearest training image than a close one


@dataclass(frozen=True)
class Neighbours:
    """The k training images nearest to one image: levels [k,C,H,W], labels and distances [k], nearest first.

    ``closer_than`` is the fraction of held-out images that are farther from their nearest training image than this one
    is from its own: near 1 the image is closer to training than real new images are. A copy has distance 0.
    """

    images: Levels
    labels: Int64[Tensor, " k"]
    distances: Float[Tensor, " k"]
    closer_than: float


class TrainingImages:
    """Training images with their features, and the distances from held-out images to their nearest ones."""

    def __init__(self, embed: Embed, train: ImageDataset, held_out: ImageDataset):
        self.embed, self.train = embed, train
        self.features = torch.cat([embed(part) for part, _ in _batches(train)])
        distances = [self._distances(part).min(1).values for part, _ in _batches(held_out)]
        self.usual = torch.cat(distances).sort().values

    def nearest(self, image: UInt8[Tensor, "1 c h w"], count: int = 6) -> Neighbours:
        """Return the ``count`` nearest training images of one generated image, by Euclidean distance of features."""
        distances, found = self._distances(image)[0].topk(min(count, len(self.train)), largest=False)
        images, labels = self.train.batch(found.tolist())
        farther = (self.usual > distances[0]).double().mean().item()
        return Neighbours(images, labels, distances, farther)

    def _distances(self, images: Levels) -> Float[Tensor, "n m"]:
        return torch.cdist(self.embed(images), self.features, compute_mode="donot_use_mm_for_euclid_dist")


def above_their_nearest(
    images: UInt8[Tensor, "n c h w"], there: TrainingImages, columns: int
) -> tuple[UInt8[Tensor, "m c h w"], float]:
    """Return a grid of ``columns``, each image above its nearest training image, and the fraction of close images.

    An image is close if ``closer_than`` is 0.95 or more, as of about 5 % of new images. The last row is filled with
    grey.
    """
    found = [there.nearest(image[None], 1) for image in images]
    missing = -len(images) % columns
    filling = images.new_full((missing, *images.shape[1:]), GREY)
    above, below = (torch.cat([part, filling]) for part in (images, torch.cat([near.images for near in found])))
    rows = [row for pair in zip(above.split(columns), below.split(columns), strict=True) for row in pair]
    return torch.cat(rows), sum(near.closer_than >= CLOSE for near in found) / len(found)


def _batches(images: ImageDataset):
    for first in range(0, len(images), BATCH):
        yield images.batch(range(first, min(first + BATCH, len(images))))


@torch.no_grad()
def training_images(module: GenerativeModule, most: int, cache_dir: str | None) -> TrainingImages:
    """Open the first ``most`` training images of the data that a model was trained on, with the classifier of the data.

    The classifier is read from the cache, or trained in seconds. Raises UserError if the data are latents, have no
    held-out images, or are not on this machine.
    """
    if not module.config.get("data"):
        raise UserError("nearest training images: the model does not say which data it was trained on")
    source = build_part("data", module.config["data"])
    check_source(source)
    if source.latents:
        raise UserError(f"{source.name} holds latents, which the small classifier does not take")
    source.check()
    if not source.has_held_out:
        raise UserError(
            f"{source.name} was trained without held-out images, which the distances are compared with, so its nearest "
            "training images are not searched"
        )
    train, held_out = source.train(), source.held_out()
    stored = (module.config.get("metrics") or {}).get("classifier")
    section = stored or OmegaConf.to_container(compose([]).metrics.classifier, resolve=True)
    classifier = cached_classifier(source, build_part("metrics.classifier", section), cache_dir).eval()
    embed = torch.no_grad()(classifier.embed)
    return TrainingImages(embed, first_images(train, most), first_images(held_out, most))
