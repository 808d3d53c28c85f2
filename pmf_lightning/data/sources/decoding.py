"""What the sources share that crop images of any size to squares and decode them once into the cache."""

import warnings
from collections.abc import Callable
from typing import ClassVar

import torch

from pmf_lightning.data.dataset import DataSourceBase
from pmf_lightning.data.images.decoder import check_background, describe_conversions
from pmf_lightning.data.sources.decode_cache import Decoded, DecodeJob, cannot_read, open_decoded
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.utils.cache import cache_root
from pmf_lightning.utils.errors import UserError

POLICIES = ("skip", "fail")


def check_size(channels: int, resolution: int) -> None:
    """Raise UserError unless ``channels`` is 1 or 3 and ``resolution`` is at least 1."""
    if channels not in (1, 3):
        raise UserError(f"data.channels={channels}: set data.channels to 3 (colour) or 1 (grey)")
    if resolution < 1:
        raise UserError(f"data.resolution={resolution}: set it to 1 or more")


class DecodingSource(DataSourceBase):
    """Base of sources that decode images of users, of which some may be unreadable. A subclass has these fields too.

    ``unreadable`` determines whether a broken image is skipped or fatal. ``held_out_fraction`` of every class is held
    out. ``cache_dir`` None means the user's cache folder. Transparent pixels show ``background``.
    """

    crop: ClassVar[str] = CROP_RULE

    resolution: int
    channels: int
    unreadable: str
    held_out_fraction: float | int
    cache_dir: str | None
    background: str

    def check_decoding(self) -> None:
        """Raise UserError for invalid settings of decoding and split."""
        check_size(self.channels, self.resolution)
        if self.unreadable not in POLICIES:
            raise UserError(f"data.unreadable={self.unreadable}: set it to {' or '.join(POLICIES)}")
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(f"data.held_out_fraction={self.held_out_fraction}: set it from 0 to below 1")
        check_background(self.background, "data.background")

    def open_images(self, cache: str, job: DecodeJob, name_of: Callable[[int], str]) -> Decoded:
        """Open the images of ``job`` in the folder ``cache`` of the cache; report conversions and unreadable images.

        Raises UserError for an unreadable image if that is fatal, and for a class of which no image is readable, with
        the name ``name_of(label)``.
        """
        fail = self.unreadable == "fail"
        decoded = open_decoded(cache_root(self.cache_dir) / cache, job, fail)
        if decoded.done:
            print(describe_conversions(decoded.done), flush=True)
        if bad := decoded.unreadable:
            if fail:  # the cache may be that of a run that skipped them
                raise cannot_read(job.files.root, bad[0])
            given = torch.bincount(job.labels)
            readable = torch.bincount(decoded.labels, minlength=len(given))
            for label in ((given > 0) & (readable == 0)).nonzero().flatten().tolist():
                raise UserError(f"{name_of(label)} holds no readable image: repair or remove it")
            warnings.warn(
                f"{len(bad)} of {len(job.names)} images cannot be read and are skipped{self.describe(bad)} "
                f"(all listed in {decoded.unreadable_file})",
                stacklevel=2,
            )
        return decoded

    def describe(self, unreadable: list[str]) -> str:
        """Return the end of a warning: the names of the first three unreadable images."""
        return ": " + ", ".join(line.split("\t")[0] for line in unreadable[:3]) + (", ..." if unreadable[3:] else "")
