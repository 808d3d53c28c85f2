"""Features of real images in the members of a battery: measured on the data at hand, once, and cached, or read."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64
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
LabelledRows = tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]
BATCH = 120  # images at a time; constant, because the last bits of convolutions depend on it


def real_features(
    battery: Battery,
    reference: str | None,
    source: DataSource,
    needs: Collection[str],
    cache_dir: str | None,
    held_out: int = 0,
) -> dict[str, RealFeatures]:
    """Return the features of real images by member.

    Args:
        reference: "data" for the training split of ``source``, which is measured once and cached; or a folder of
            make_stats, or files of FD-loss (``reference_files``).
        needs: what the features are needed for, from ``discrepancies.real_features.NEEDS``.
        held_out: least number of held-out images whose features are needed too.

    Raises UserError for a missing reference, one without what is needed, data without pixels, or too few held-out
    images.
    """
    if reference is None:
        raise UserError(
            "battery.reference is not set: give a folder of make_stats battery=, FD-loss's files, or data for the "
            "training split of the data"
        )
    if source.latents and (reference == DATA or held_out):
        raise UserError(f"battery.reference={reference}: {source.name} provides latents; features are of pixels")
    if (there := len(source.held_out()) if held_out and source.has_held_out else 0) < held_out:
        raise UserError(
            f"data={source.name} holds out {there} images, and the loss compares {held_out} of them (the floor of its "
            "controller); hold out more, set a smaller batch, or posttrain.controller=null"
        )
    if reference == DATA:
        measured = split_rows(battery, source, "train", cache_dir)
        found = {name: RealFeatures(name, len(rows), rows, labels) for name, (rows, labels) in measured.items()}
    else:
        resolution = source.resolution * (1 if battery.decoder is None else battery.decoder.scale)
        found = read_references(reference, dict(battery.members), resolution, needs)
    if held_out:
        others = split_rows(battery, source, "held_out", cache_dir)
        for name, (rows, labels) in others.items():
            found[name] = replace(found[name], held_out=rows, held_out_labels=labels)
    return found


def split_rows(battery: Battery, source: DataSource, split: str, cache_dir: str | None) -> dict[str, LabelledRows]:
    """Return one row of features and the label of each image of a split ("train" or "held_out"), by member.

    Each member's are cached. One process measures while others wait, so that all have the same numbers.
    """
    folder = cache_root(cache_dir) / "features"
    folder.mkdir(exist_ok=True)
    files = {
        name: folder / f"{digest(source.fingerprint(), split, 'with labels', member.fingerprint(), BATCH)}.pt"
        for name, member in battery.members.items()
    }
    found = _stored(files)
    missing = {name: files[name] for name in files.keys() - found.keys()}
    with ExitStack() as locks:
        for path in sorted({*missing.values()}):  # in one order, so that no two processes wait for each other
            locks.enter_context(sole_writer(path))
        found |= _stored(missing)
        if lacking := {name: battery.members[name] for name in files if name not in found}:
            images = source.train() if split == "train" else source.held_out()
            for name, rows in _measured(lacking, images, f"{split} images").items():
                found[name] = rows
                with atomic_write(files[name]) as draft:
                    torch.save(dict(zip(("rows", "labels"), rows, strict=True)), draft)
    return {name: found[name] for name in files}


def _stored(files: Mapping[str, Path]) -> dict[str, LabelledRows]:
    """Return the cached rows of those ``files`` that are there and can be read; damaged ones are measured again."""
    found = {}
    for name, path in files.items():
        with suppress(Exception):  # torch may raise any error for a damaged file
            stored = load_tensors(path)
            found[name] = stored["rows"], stored["labels"]
    return found


@torch.no_grad()
def _measured(members: Mapping[str, torch.nn.Module], images: ImageDataset, title: str) -> dict[str, LabelledRows]:
    device = next((p.device for m in members.values() for p in m.parameters()), torch.device("cpu"))
    parts: dict[str, list[Tensor]] = {name: [] for name in members}
    labels = []
    firsts = tqdm(range(0, len(images), BATCH), f"features of {title}", leave=False, disable=None)
    for first in firsts:
        pixels, theirs = images.batch(range(first, min(first + BATCH, len(images))))
        labels.append(theirs)  # an unreadable image is replaced by another, with the label of that one
        pixels = to_float(pixels.to(device))
        with full_precision(device):
            for name, member in members.items():
                parts[name].append(member.encode(pixels)[FEATURES].float().cpu())
    return {name: (torch.cat(rows), torch.cat(labels)) for name, rows in parts.items()}
