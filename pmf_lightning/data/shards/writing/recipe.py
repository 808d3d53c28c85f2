"""The settings that determine the bytes of shards, and the distribution of records over shards."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pmf_lightning.data.shards.writing.inputs import Inputs, SourceImage
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.rng import permutation


@dataclass(frozen=True)
class Recipe:
    """The settings that all shards of a folder share.

    ``size`` is the side of the crop in pixels, ``channels`` is that of the image. Transparent pixels show
    ``background``. ``autoencoder`` names the weights for latents. ``inputs`` is the fingerprint of the ``images``
    found, readable or not.
    """

    kind: str
    payload: str
    quality: int | None
    size: int
    channels: int
    crop: str
    background: str
    records_per_shard: int
    autoencoder: str | None
    images: int
    inputs: str

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.records_per_shard)

    def differences(self, other: "Recipe") -> str:
        """Return the options in which ``other`` differs, as "size=64, now 128"; empty if there are none."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(f"{key}={mine[key]}, now {theirs[key]}" for key in mine if mine[key] != theirs[key])


@dataclass(frozen=True)
class ShardTask:
    """One shard to make: the path of its tar, and its images in order."""

    number: int
    tar: Path
    pieces: list[SourceImage]
    recipe: Recipe


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"


def shard_tasks(inputs: Inputs, recipe: Recipe, out: Path, numbers: list[int]) -> Iterator[ShardTask]:
    """Yield the shards ``numbers`` as tasks.

    The images are assigned in the order of one permutation, so that every shard is a random sample. Image k of that
    order belongs to shard ``k * shards // images``, readable or not. Shard sizes differ by at most one, plus the
    unreadable images.
    """
    order = permutation("shards", "order", count=len(inputs)).numpy()
    borders = -(-np.arange(recipe.shards + 1) * len(inputs) // recipe.shards)
    for number in numbers:
        rows = order[borders[number] : borders[number + 1]]
        yield ShardTask(number, out / shard_name(number), [inputs.piece(int(row)) for row in rows], recipe)


def check_recipe(recipe: Recipe, known: Recipe, out: Path) -> None:
    """Raise UserError if ``out`` has shards of another recipe."""
    if differences := known.differences(recipe):
        raise UserError(
            f"out={out}: it has shards made with other options ({differences}); set another out, or remove that folder"
        )
