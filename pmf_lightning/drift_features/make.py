"""The choices of conf/drift_features: where a run's features come from. All take the data and the cache folder last."""

from pathlib import Path

import torch
from torch import nn

from pmf_lightning.data.dataset import Source
from pmf_lightning.drift_features.cached_mae import MAESettings, cached_mae
from pmf_lightning.drift_features.frozen import DriftFeatures
from pmf_lightning.drift_features.runs import run_encoder
from pmf_lightning.errors import UserError
from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.official.mae import load_official_mae, official_mae_sizes

OFFICIAL_GRID = 32  # patches along a side, of all released encoders


def pixels_alone(*, source: Source, cache_dir: str | None, convnext: nn.Module | None = None) -> DriftFeatures:
    """Return features without an MAE: the pixels as one vector, and those of ``convnext`` where one is given."""
    return _checked(DriftFeatures(None, convnext), source)


def trained_on_data(
    settings: MAESettings,
    sets: str,
    every_block: int,
    *,
    source: Source,
    cache_dir: str | None,
    convnext: nn.Module | None = None,
) -> DriftFeatures:
    """Return features of a small MAE of ``source``'s training split, trained now or read from the cache folder.

    Raises UserError where it cannot be made.
    """
    return _checked(DriftFeatures(cached_mae(source, settings, cache_dir).encoder, convnext, sets, every_block), source)


def released(
    path: str | None,
    sets: str,
    every_block: int,
    *,
    source: Source,
    cache_dir: str | None,
    convnext: nn.Module | None = None,
) -> DriftFeatures:
    """Return features of a released encoder in the folder ``path`` (see ``released_encoder``).

    Raises UserError for a missing or foreign folder, or an encoder that was trained on other images than ``source``'s.
    """
    if path is None:
        raise UserError("drift_features.path is not set: give the folder with ema_params.msgpack and metadata.json")
    return _checked(DriftFeatures(released_encoder(path), convnext, sets, every_block), source)


def trained_by_run(
    path: str | None,
    sets: str,
    every_block: int,
    *,
    source: Source,
    cache_dir: str | None,
    convnext: nn.Module | None = None,
) -> DriftFeatures:
    """Return features of the encoder that a run of the train command made (see ``run_encoder``).

    Raises UserError for a missing or foreign run, or an encoder that was trained on other images than ``source``'s.
    """
    if path is None:
        raise UserError("drift_features.path is not set: give the directory of a run of model=mae_r256 or the like")
    return _checked(DriftFeatures(run_encoder(path), convnext, sets, every_block), source)


def released_encoder(path: str | Path) -> MAEEncoder:
    """Return the encoder in a folder of ema_params.msgpack and metadata.json, as the official code writes them; frozen.

    Its images have 32 patches along a side, as all official ones. Raises UserError for a missing or foreign folder.
    """
    sizes = official_mae_sizes(path)
    patch, names = sizes["patch"], ("channels", "patch", "base_channels", "blocks")
    try:
        with torch.device("meta"):
            encoder = MAEEncoder(resolution=OFFICIAL_GRID * patch, **{name: sizes[name] for name in names})
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return load_official_mae(path, encoder).requires_grad_(False).eval()


def _checked(features: DriftFeatures, source: Source) -> DriftFeatures:
    features.check(source.channels, source.resolution)
    return features
