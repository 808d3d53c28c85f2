"""How much disk shards will take, said before they are made."""

import math
from pathlib import Path

import numpy as np

from pmf_lightning.data.room_left import free_disk
from pmf_lightning.errors import UserError
from pmf_lightning.precision import Number
from pmf_lightning.shards.inputs import Inputs
from pmf_lightning.shards.payloads import PAYLOADS
from pmf_lightning.shards.pixels import encode_as, read_piece
from pmf_lightning.shards.recipe import Recipe

SAMPLE = 24  # images encoded for an estimate
BLOCK = 512  # of a tar
HEADER = 128  # of npy
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def bytes_per_record(inputs: Inputs, recipe: Recipe, latent_shape: tuple[int, ...] | None) -> float | None:
    """Return the bytes of a record with its label and headers: known for npy, else the mean of a few images.

    None where none of the few can be read. ``latent_shape`` is that of latents, [2, C, h, w].
    """
    if PAYLOADS[recipe.payload].format is None:
        pixels = recipe.channels * recipe.size**2
        values = pixels if latent_shape is None else 4 * math.prod(latent_shape)
        return float(_in_tar(HEADER + values))
    rows = np.unique(np.linspace(0, len(inputs) - 1, SAMPLE).astype(int))
    found = [read_piece(inputs.piece(int(row)), recipe) for row in rows]
    sizes = [_in_tar(len(encode_as(one.levels, recipe))) for one in found if not isinstance(one, str)]
    return float(np.mean(sizes)) if sizes else None


def check_disk(out: Path, inputs: Inputs, recipe: Recipe, waiting: int, per_record: float | None) -> str:
    """Say what ``waiting`` records will take and what is free; UserError where that is too little."""
    if per_record is None:
        return f"{len(inputs):,} images; their size on disk cannot be told: none of a sample can be read"
    free, needed = free_disk(out), waiting * per_record
    of_all = f"{amount(len(inputs) * per_record)} for {len(inputs):,} images in {recipe.shards:,} shards"
    if needed > free:
        raise UserError(
            f"out={out}: the shards need about {amount(needed)} more and {amount(free)} are free; set out to a larger "
            f"disk, or another payload ({', '.join(PAYLOADS)})"
        )
    return f"about {of_all} at {out}, {amount(free)} free"


def amount(count: Number) -> str:
    """Write a number of bytes for people: 1.5 GB."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} {UNITS[power]}" if power == 0 or count >= 100 else f"{count:.1f} {UNITS[power]}"


def _in_tar(payload: int) -> int:
    return BLOCK + -(-payload // BLOCK) * BLOCK + 2 * BLOCK
