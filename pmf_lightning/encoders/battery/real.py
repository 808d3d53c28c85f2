"""Features of real images in the members of a battery: measured on the data at hand, once, and cached, or read."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning.data.dataset import DataSource, ImageDataset
from pmf_lightning.data.transforms import to_float
from pmf_lightning.encoders.base import full_precision
from pmf_lightning.encoders.battery.battery import FEATURES, Battery
from pmf_lightning.encoders.battery.reference_files import read_references
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.utils.cache import atomic_write, cache_root, digest, sole_writer
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.tensor_files import load_tensors

DATA = "data"  # as a reference: the training split of the configured data
BATCH = 120  # images at a time; constant, because the last bits of convolutions depend on it


def real_features(
    battery: Battery,
    reference: str | None,
    source: DataSource,
    needs: Collection[str],
    cache_dir: str | None,
    held_out: bool = False,
) -> dict[str, RealFeatures]:
    """Return the features of real images by member.

    Args:
        reference: "data" for the training split of ``source``, which is measured once and cached; or a folder of
            make_stats, or files of FD-loss (``reference_files``).
        needs: what the features are needed for, from ``discrepancies.real_features.NEEDS``.
        held_out: whether rows of the held-out split are needed too.

    Raises UserError for a missing reference, one without what is needed, or data without pixels.
    """
    if reference is None:
        raise UserError(
            "battery.reference is not set: give a folder of make_stats battery=, FD-loss's files, or data for the "
            "training split of the data"
        )
    if source.latents and (reference == DATA or held_out):
        raise UserError(f"battery.reference={reference}: {source.name} provides latents; features are of pixels")
    if reference == DATA:
        labels = source.train().labels
        rows = split_rows(battery, source, "train", cache_dir)
        found = {name: RealFeatures(name, len(some), some, labels) for name, some in rows.items()}
    else:
        resolution = source.resolution * (1 if battery.decoder is None else battery.decoder.scale)
        found = read_references(reference, dict(battery.members), resolution, needs)
    if held_out:
        others, labels = split_rows(battery, source, "held_out", cache_dir), source.held_out().labels
        found = {name: replace(one, held_out=others[name], held_out_labels=labels) for name, one in found.items()}
    return found


def split_rows(
    battery: Battery, source: DataSource, split: str, cache_dir: str | None
) -> dict[str, Float[Tensor, "n d"]]:
    """Return one row of features per image of a split ("train" or "held_out"), by member; each is cached."""
    folder = cache_root(cache_dir) / "features"
    folder.mkdir(exist_ok=True)
    files = {
        name: folder / f"{digest(source.fingerprint(), split, member.fingerprint(), BATCH)}.pt"
        for name, member in battery.members.items()
    }
    found = {name: rows for name, path in files.items() if (rows := _stored(path)) is not None}
    missing = [name for name in files if name not in found]
    if missing:
        images = source.train() if split == "train" else source.held_out()
        measured = _measured({name: battery.members[name] for name in missing}, images, f"{split} images")
        for name, rows in measured.items():
            with sole_writer(files[name]), atomic_write(files[name]) as draft:
                torch.save(rows, draft)
        found |= measured
    return {name: found[name] for name in files}


def _stored(path: Path) -> Tensor | None:
    """Return cached rows, None if there are none or the file is damaged."""
    if not path.is_file():
        return None
    try:
        return load_tensors(path)
    except Exception:  # torch may raise any error for a damaged file; it is measured again
        return None


@torch.no_grad()
def _measured(members: Mapping[str, torch.nn.Module], images: ImageDataset, title: str) -> dict[str, Tensor]:
    device = next((p.device for m in members.values() for p in m.parameters()), torch.device("cpu"))
    parts: dict[str, list[Tensor]] = {name: [] for name in members}
    firsts = tqdm(range(0, len(images), BATCH), f"features of {title}", leave=False, disable=None)
    for first in firsts:
        pixels = to_float(images.batch(range(first, min(first + BATCH, len(images))))[0].to(device))
        with full_precision(device):
            for name, member in members.items():
                parts[name].append(member.encode(pixels)[FEATURES].float().cpu())
    return {name: torch.cat(rows) for name, rows in parts.items()}
