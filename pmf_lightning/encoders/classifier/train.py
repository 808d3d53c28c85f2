"""Train the small classifier on a training split; it takes seconds and is cached.

Images of one class are told apart by how they are turned.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from pmf_lightning.data.dataset import BatchDataset, DataSource, ImageDataset
from pmf_lightning.encoders.classifier.network import ARCHITECTURES, ImageClassifier
from pmf_lightning.encoders.trained_cache import load_or_train
from pmf_lightning.utils.cache import cache_root, digest
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.rng import generator
from pmf_lightning.utils.threads import fixed

VERSION = 1  # part of the cache key: increase it when the network or its training changes


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of the classifier and its training; the numbers are in ``conf/metrics/small.yaml``.

    ``seed`` is not the run's seed, because runs are comparable only if the same classifier evaluates them. Images are
    reduced to at most ``side`` pixels. ``shift`` is the largest augmenting shift as a fraction of the side.
    ``warmup_steps`` counts steps. ``architecture`` is a name of ``ARCHITECTURES``.
    """

    seed: int
    side: int
    features: int
    steps: int
    batch: int
    lr: float | int
    warmup_steps: int
    weight_decay: float | int
    shift: float | int
    architecture: str = "convolutional"

    @property
    def key(self) -> tuple[int | float | str, ...]:
        """The settings as a part of cache keys and fingerprints.

        The default architecture is left out: classifiers that were cached before there was a choice keep their keys.
        """
        *others, architecture = astuple(self)
        return tuple(others) if architecture == "convolutional" else (*others, architecture)

    def network(self, channels: int, classes: int) -> ImageClassifier:
        """Return the untrained network; UserError for an unknown architecture."""
        if self.architecture not in ARCHITECTURES:
            hint = suggestions(str(self.architecture), ARCHITECTURES)
            raise UserError(f"architecture={self.architecture}: there is no such classifier; {hint}")
        return ARCHITECTURES[self.architecture](channels, classes, self.features, self.seed, self.side)


def classes_of(source: DataSource) -> int:
    """Return the number of classes that a classifier of the data tells apart: with one class, its quarter turns."""
    return len(QuarterTurns.names) if source.classes == 1 else source.classes


def cached_classifier(source: DataSource, settings: ClassifierSettings, cache_dir: str | None) -> ImageClassifier:
    """Return the classifier of ``source``'s training split, read from the cache folder or trained and cached.

    With one class its classes are the ``QuarterTurns`` of the images. A damaged file is replaced, with a notice. Raises
    UserError if the cache folder cannot be written, or for latents.
    """
    if source.latents:
        raise UserError(f"{source.name} provides latents: the small classifier needs pixels; leave it out")
    folder = cache_root(cache_dir) / "classifiers"
    folder.mkdir(exist_ok=True)
    path = folder / f"{digest(VERSION, source.fingerprint(), source.classes, *settings.key)}.pt"

    one_class, classes = source.classes == 1, classes_of(source)

    def empty() -> ImageClassifier:
        return settings.network(source.channels, classes)

    def trained() -> ImageClassifier:
        split = source.train()
        return train_classifier(QuarterTurns(split) if one_class else split, classes, settings)

    return load_or_train(path, empty, trained, "the classifier")


class QuarterTurns(BatchDataset):
    """Images turned by 0, 90, 180 and 270 degrees, with the number of quarter turns as label; ``images`` are square.

    Features that tell the turns apart need no classes (Gidaris et al. 2018, arXiv 1803.07728).
    """

    names = ("upright", "90 degrees", "180 degrees", "270 degrees")

    def __init__(self, images: ImageDataset) -> None:
        self.images = images
        self.labels = torch.arange(len(self.names)).repeat(len(images))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """Return images and labels; image i is image ``i // 4``, turned ``i % 4`` times."""
        images, _ = self.images.batch([index // len(self.names) for index in indices])
        turns = torch.tensor([index % len(self.names) for index in indices])
        for number in range(1, len(self.names)):
            chosen = turns == number
            images[chosen] = images[chosen].rot90(number, (-2, -1))
        return images, turns


@fixed(1)  # the order of sums, and so the last bits, depends on the number of threads
@torch.inference_mode(mode=False)  # Lightning evaluates in inference mode, in which tensors cannot be trained
@torch.enable_grad()
@torch.autocast("cpu", enabled=False)
def train_classifier(split: ImageDataset, classes: int, settings: ClassifierSettings) -> ImageClassifier:
    """Train a classifier on the CPU by AdamW with warm-up and cosine decay; return it frozen.

    ``split`` holds pixels. The weights are bit-identical for any number of threads, given the same input, version of
    torch and kind of processor. Raises UserError for fewer than two classes, or if training diverges.
    """
    if classes < 2:
        raise UserError(f"{classes} class: the classifier that measures quality needs at least 2; set metrics=none")
    classifier = settings.network(split[0][0].shape[0], classes)
    adam = torch.optim.AdamW(classifier.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    for step in tqdm(range(settings.steps), "training the classifier", leave=False, disable=None):
        draw = generator(settings.seed, "classifier", "batch", step)
        batch, wanted = split.batch(torch.randint(len(split), (settings.batch,), generator=draw).tolist())
        small = classifier.shrink(batch)
        reach = round(settings.shift * small.shape[-1])
        moved = shifted(small, torch.randint(-reach, reach + 1, (settings.batch, 2), generator=draw))
        for group in adam.param_groups:
            group["lr"] = settings.lr * _rate(step, settings)
        adam.zero_grad()
        functional.cross_entropy(classifier.head(classifier.body(moved)), wanted).backward()
        adam.step()
    if not all(weight.isfinite().all() for weight in classifier.parameters()):
        raise UserError(f"the classifier diverged at metrics.classifier.lr={settings.lr}: lower it")
    return classifier.eval().requires_grad_(False)


def shifted(images: Float[Tensor, "b c h w"], by: Int64[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Move image i by ``by[i]`` pixels (down, right), repeating the border pixels."""
    batch, _, height, width = images.shape
    rows = (torch.arange(height) - by[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) - by[:, 1:]).clamp(0, width - 1)
    return images[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _rate(step: int, settings: ClassifierSettings) -> float:
    return min(1, (step + 1) / (settings.warmup_steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
