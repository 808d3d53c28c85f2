"""Data sources of shards: WebDataset tars, each with an index, as written by pmf_lightning.shard."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pmf_lightning.data.dataset import DataSourceBase
from pmf_lightning.data.shards.bad_records import BadRecordCounter
from pmf_lightning.data.shards.images import RecordFormat, ShardImages
from pmf_lightning.data.shards.manifest import MAKE, Manifest, manifest_of
from pmf_lightning.data.shards.payloads import decode
from pmf_lightning.data.shards.records import Records, open_records
from pmf_lightning.data.split import class_quantiles
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.utils import rng
from pmf_lightning.utils.cache import digest
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.pasted import path_argument
from pmf_lightning.utils.precision import Number


@dataclass(frozen=True)
class Shards(DataSourceBase):
    """Source of the images of the shards in ``root``, whose resolution, channels and classes must match.

    A fixed ``held_out_fraction`` of every class, rounded, is held out. A run fails if more than a fraction ``max_bad``
    of the records that it reads are bad; up to that, they are replaced by others (see ``ShardImages``).
    """

    name: str
    root: str | None
    resolution: int
    channels: int
    classes: int
    held_out_fraction: Number
    max_bad: Number

    crop: ClassVar[str] = CROP_RULE
    costly_to_read: ClassVar[bool] = True

    def check(self) -> None:
        """Raise UserError for settings that do not match the shards; warn of truncated shards. Reads no record.

        Every tar must exist and have an index that matches the manifest.
        """
        for key in ("held_out_fraction", "max_bad"):
            if not 0 <= (value := getattr(self, key)) < 1:
                raise UserError(f"data.{key}={value}: set it from 0 to below 1")
        self._check_kind()
        for key, stored in self._stored().items():
            if (value := getattr(self, key)) != stored:
                raise UserError(
                    f"data.{key}={value}, but the shards in data.root={self.root} have {key}={stored}: set "
                    f"data.{key}={stored}, or data.root to other shards ({MAKE} makes them)"
                )
        _ = self._records

    def train(self) -> ShardImages:
        """Return the training split."""
        self.check()
        return self._images(self._quantiles >= self.held_out_fraction)

    def held_out(self) -> ShardImages:
        """Return the split that is not used in training; UserError if it is empty."""
        self.check()
        if not self.held_out_fraction:
            raise UserError(
                f"data.held_out_fraction=0: no image of data={self.name} is held out for comparison; set it, for "
                "example to 0.01, or leave out what needs it (metrics=none)"
            )
        images = self._images(self._quantiles < self.held_out_fraction)
        if not len(images):
            least = 0.5 / max(self._manifest.per_class)
            raise UserError(
                f"data.held_out_fraction={self.held_out_fraction} of so few images selects none: set it above "
                f"{least:.2g}"
            )
        return images

    @property
    def class_names(self) -> list[str]:
        """Return the name of every class, in the order of the labels."""
        return self._manifest.class_names

    @property
    def has_held_out(self) -> bool:
        """Return whether a fraction is held out."""
        return self.held_out_fraction > 0

    def fingerprint(self) -> str:
        """Return a hex digest of the digests of the shards, and of the split."""
        digests = "\n".join(f"{shard.file} {shard.digest}" for shard in self._manifest.shards)
        return digest("shards", self._manifest.kind, self.held_out_fraction, digests)

    @cached_property
    def _manifest(self) -> Manifest:
        return manifest_of(self.root, self.name)

    def _check_kind(self) -> None:
        kind = "latents" if self.latents else "pixels"
        if self._manifest.kind == kind:
            return
        other = "pixels" if self.latents else "latents"
        remedy = "data=shards reads them" if self.latents else "data=imagenet256_latents reads them"
        raise UserError(f"data={self.name} needs {kind}, data.root={self.root} holds {other}: {remedy}")

    def _stored(self) -> dict[str, Any]:
        manifest = self._manifest
        return {
            "resolution": manifest.resolution,
            "channels": manifest.channels,
            "classes": len(manifest.class_names),
        }

    @cached_property
    def _records(self) -> Records:
        """The table of all records; UserError if it does not match the manifest or too many records are lost."""
        manifest = self._manifest
        if not manifest.count:
            raise UserError(f"data.root={self.root}: these shards hold no image; {MAKE} makes others")
        records = open_records(Path(self.root).expanduser(), manifest)
        if cut_off := records.cut_off():
            lost = sum(cut_off.values())
            few = ", ".join(f"{file} ({count})" for file, count in list(cut_off.items())[:5])
            summary = (
                f"{len(cut_off)} of {len(manifest.shards)} shards in {self.root} are truncated, {lost} records lost"
            )
            if lost > math.ceil(self.max_bad * len(records)):
                raise UserError(f"{summary}, more than data.max_bad={self.max_bad}: {few}; {self._remedy}")
            warnings.warn(f"{summary}: {few}; other records replace them. {self._remedy}", stacklevel=2)
        return records

    @cached_property
    def _quantiles(self) -> Float64[np.ndarray, " n"]:
        if not self.held_out_fraction:
            return np.zeros(len(self._records))
        return class_quantiles(torch.from_numpy(self._records.labels), "shards").numpy()

    def _images(self, chosen: np.ndarray) -> ShardImages:
        records, shape = self._records, (self.channels, self.resolution, self.resolution)
        if self.latents:
            shape = (2, *shape)
        decoder = partial(decode, payload=self._manifest.payload, channels=self.channels)
        record_format = RecordFormat(decoder, shape, torch.float32 if self.latents else torch.uint8, self._change)
        tally = BadRecordCounter(len(records), self.max_bad, records.describe, self._remedy)
        return ShardImages(records, chosen.nonzero()[0], record_format, tally)

    @property
    def _change(self) -> Callable[[Tensor, int], Tensor] | None:
        return None

    @property
    def _remedy(self) -> str:
        return f"python -m pmf_lightning.shard {path_argument('out', self.root)} verify=true lists them"


@dataclass(frozen=True)
class LatentShards(Shards):
    """Source of latents in shards: items are means and standard deviations, float32 [2, channels, resolution, ...].

    ``draw`` determines how often a latent is sampled from them: in every step ("every_time", as in iMF), or "once",
    keyed by the index of the record, as in the latent cache of Drifting. With "once" the standard deviations are 0.
    """

    draw: str = "every_time"

    latents: ClassVar[bool] = True

    def check(self) -> None:
        """Raise UserError as ``Shards.check`` does, and for another ``draw``."""
        if self.draw not in _DRAWS:
            raise UserError(f"data.draw={self.draw}: latents are sampled {' or '.join(_DRAWS)}; set one of them")
        super().check()

    def fingerprint(self) -> str:
        """Return a hex digest of the digests of the shards, of the split, and of ``draw`` if it is "once"."""
        return super().fingerprint() if self.draw == "every_time" else digest(super().fingerprint(), self.draw)

    @property
    def _change(self) -> Callable[[Tensor, int], Tensor] | None:
        return sampled_once if self.draw == "once" else None


_DRAWS = ("every_time", "once")


def sampled_once(moments: Float[Tensor, "2 c h w"], record: int) -> Float[Tensor, "2 c h w"]:
    """Return a fixed sample of the latent of record ``record``, as a mean with standard deviations of 0."""
    mean, std = moments
    noise = rng.normal_images("latents", "once", rows=torch.tensor([record]), shape=tuple(mean.shape))[0]
    return torch.stack((mean + std * noise, torch.zeros_like(std)))
