"""Compute the reference statistics of images and write their files (command make_stats)."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config import validate
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.distributed.collectives import on_all_ranks, on_rank_zero
from pmf_lightning.distributed.launch import is_rank_zero, print_on_main, torchrun_group
from pmf_lightning.encoders.base import Extractor
from pmf_lightning.encoders.battery.reference_files import INDEX
from pmf_lightning.encoders.build import make_battery
from pmf_lightning.evaluation.battery.references import ReferenceSettings, write_references
from pmf_lightning.evaluation.build import complete_extractor
from pmf_lightning.evaluation.image_files import open_images
from pmf_lightning.evaluation.references import Reference
from pmf_lightning.evaluation.statistics import labelled_images, paths_of, save_all, split_statistics, statistics
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.utils.cache import check_not_there, writable
from pmf_lightning.utils.errors import UserError


def run(cfg: DictConfig) -> dict[str, Any]:
    """Compute statistics as ``pmf_lightning.make_stats.make_stats`` describes it."""
    out, source = check(cfg)
    if cfg.get("battery") is not None:
        return _of_battery(cfg, out, source)
    with torchrun_group(cfg.device) as device:
        on_all_ranks(lambda: writable(out.parent, "out"))
        extractor = on_all_ranks(lambda: complete_extractor(make_part(cfg, "extractor"), source, cfg.cache_dir))
        of = _of_data if cfg.images is None else _of_images
        reference = of(cfg, source, extractor, device)
        paths = on_rank_zero(lambda: save_all(reference, out))
    return {
        "paths": paths,
        "about": dict(reference.about),
        "features": 0 if reference.features is None else len(reference.features),
    }


def check(cfg: DictConfig) -> tuple[Path, DataSource | None]:
    """Check the options that need no weights; return the output path and the data source, if any. Raises UserError."""
    if OmegaConf.is_missing(cfg, "out"):
        raise UserError("out is not set; name a file to make, such as out=stats.npz")
    out = Path(cfg.out).expanduser()
    if cfg.get("battery") is None and (given := [f"{name}={cfg[name]}" for name in ("nystrom", "bank") if cfg[name]]):
        raise UserError(f"{' '.join(given)}: these are of the encoders of a battery; set battery=")
    if cfg.bandwidth_scale != 1 and not cfg.nystrom:
        raise UserError(f"bandwidth_scale={cfg.bandwidth_scale}: it is of a Nystrom reference; set nystrom=4096")
    if cfg.get("battery") is None and out.suffix != ".npz":
        raise UserError(
            f"out={cfg.out}: statistics are written as .npz (with a .pkl next to it); set out={out.stem}.npz"
        )
    check_not_there(cfg.out, paths_of(out) if cfg.get("battery") is None else [out / INDEX], cfg.force)
    validate.torch_device(cfg.device)
    has_data = cfg.get("data") is not None
    if cfg.get("battery") is not None and not (has_data and cfg.images is None):
        raise UserError("battery=: its statistics are of the training split of the data; set data=, not images=")
    if cfg.images is None and not has_data:
        raise UserError("no images to measure; set data=, or images= to a folder of images or an .npz")
    source = make_part(cfg, "data") if has_data else None
    if source is not None:
        source.check()
    return out, source


def _of_data(cfg: DictConfig, source: DataSource, extractor: Extractor, device: torch.device) -> Reference:
    return split_statistics(source, extractor, cfg.n, cfg.batch_size, cfg.features, device, cfg.num_workers)


def _of_images(cfg: DictConfig, source: DataSource | None, extractor: Extractor, device: torch.device) -> Reference:
    """Compute the statistics of existing images, with the channels of ``source`` (a classifier's data) or else 3."""
    channels = 3 if source is None else source.channels
    images = on_all_ranks(lambda: open_images(cfg.images, channels, cfg.background))
    print_on_main(images.summary())
    n = cfg.n or len(images)
    if n > len(images):
        raise UserError(f"n={n}: {cfg.images} holds {len(images)} images; set n to that or less")
    about = {"data": str(cfg.images), "split": "all", "resolution": images.shape[1], "channels": images.shape[0]}
    measured = statistics(images, n, extractor, cfg.batch_size, cfg.features, device, about)
    print_on_main(images.conversions())
    return measured


def _of_battery(cfg: DictConfig, out: Path, source: DataSource) -> dict[str, Any]:
    """Write the references of all encoders of the battery to the folder ``out``, in one pass over the data."""
    settings = ReferenceSettings(cfg.nystrom, cfg.bandwidth_scale, cfg.bank)
    images, n, about = labelled_images(source, cfg.n, cfg.batch_size, cfg.num_workers, settings.check)
    with torchrun_group(cfg.device) as device:
        on_all_ranks(lambda: writable(out, "out"))
        battery = on_all_ranks(lambda: make_battery(_plain(cfg.battery), None, source, cfg.cache_dir)).to(device)
        index = write_references(battery, images, n, settings, cfg.batch_size, device, about, out)
    about = {**about, "n": n, "extractor": ", ".join(index["encoders"])}
    return {"paths": [out], "about": about, "features": settings.bank}


def _plain(section: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(section, resolve=True)


def run_and_show(cfg: DictConfig) -> None:
    """Compute the statistics and print their paths on rank 0."""
    made = run(cfg)
    if is_rank_zero():
        about = made["about"]
        print(f"{about['n']} images of {about['data']} ({about['resolution']} px), features of {about['extractor']}")
        print(f"{', '.join(map(str, made['paths']))}; features of {made['features']} images")
