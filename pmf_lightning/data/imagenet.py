"""ImageNet by name: the entries exist, so that models name their data; the shard reader does not yet."""

from dataclasses import dataclass
from typing import NoReturn

from pmf_lightning.errors import UserError


@dataclass(frozen=True)
class ImageNet:
    """The 1,000 classes of ILSVRC 2012 at one resolution; every use raises UserError that says what to do instead."""

    name: str
    root: str | None
    resolution: int
    channels: int
    classes: int

    def check(self) -> NoReturn:
        """Raise UserError, always."""
        if self.root is None:
            raise UserError(f"data={self.name} needs its WebDataset shards: set data.root to their folder")
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"data={self.name} cannot read shards yet (data.root={self.root}): folder-per-class images work today, "
            f"data=folder data.root=<folder> data.resolution={self.resolution}"
        )

    def train(self) -> NoReturn:
        """Raise UserError, always."""
        self.check()

    def held_out(self) -> NoReturn:
        """Raise UserError, always."""
        self.check()

    def fingerprint(self) -> NoReturn:
        """Raise UserError, always."""
        self.check()


@dataclass(frozen=True)
class ImageNetLatents(ImageNet):
    """The same as latents of an SD-VAE, ``channels`` x ``resolution`` x ``resolution``; refused likewise."""

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"data={self.name} cannot read shards of latents yet (data.root={self.root}): models of latents sample "
            f"today; to train, take pixels, model=imf_b16 data=folder data.root=<folder> data.resolution=256"
        )
