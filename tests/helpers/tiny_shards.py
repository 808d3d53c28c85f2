"""Shards of a few small images, written as pmf_lightning.shard writes them."""

from pathlib import Path

import numpy as np

from pmf_lightning.data.shards.manifest import Manifest
from pmf_lightning.data.shards.payloads import encode
from pmf_lightning.data.shards.tar import Record, write_shard


def numbered(count: int, shape=(3, 4, 4)) -> np.ndarray:
    """Images of which each shows its own number, up to 65,535: its high byte in the first place, else the low one."""
    images = np.empty((count, *shape), dtype=np.uint8)
    images[:] = (np.arange(count) % 256).reshape(-1, *[1] * len(shape))
    images[:, 0, 0, 0] = np.arange(count) // 256
    return images


def number(images) -> list[int]:
    """Read the numbers off a batch."""
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()).tolist()


def write_shards(folder: Path, images: np.ndarray, labels, per_shard: int, payload: str = "npy", **changes) -> Manifest:
    """Write images, or latents, in their order; image i has the key ``image<i>``."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for first in range(0, len(images), per_shard):
        rows = range(first, min(first + per_shard, len(images)))
        records = (Record(f"image{i}", int(labels[i]), encode(images[i], payload, 95), payload) for i in rows)
        entries.append(write_shard(folder / f"shard-{len(entries):06d}.tar", records))
    per_class = np.bincount(labels).tolist()
    about = {
        **{"kind": "latents" if images.ndim == 5 else "pixels", "payload": payload, "quality": None},
        **{"resolution": images.shape[-1], "channels": images.shape[-3], "crop": "none", "origin": "a test"},
        **{"autoencoder": None, "class_names": [f"class{i}" for i in range(len(per_class))], "per_class": per_class},
        **{"skipped": 0, "shards": entries},
    }
    manifest = Manifest(**{**about, **changes})
    manifest.write(folder)
    return manifest
