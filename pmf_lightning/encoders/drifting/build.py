"""Build the feature encoder of Drifting: one function per choice of conf/drift_features."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.classifier.train import ClassifierSettings, cached_classifier
from pmf_lightning.encoders.drifting.classifier_maps import ClassifierMaps
from pmf_lightning.encoders.drifting.extractor import DriftFeatures
from pmf_lightning.encoders.drifting.train_mae import MAESettings, cached_mae
from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.network import MAE
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.state_names import unwrapped
from pmf_lightning.utils.tensor_files import at_most_weights, load_tensors
from pmf_lightning.weights.mae import load_official_mae, official_mae_sizes

_SIZES = ("resolution", "channels", "patch", "base_channels", "blocks")

_TARGET = f"{MAE.__module__}.{MAE.__name__}"


def run_encoder(path: str | Path) -> MAEEncoder:
    """Return the frozen encoder of an MAE's run directory or checkpoint, with the average used for evaluation.

    Sizes, resolution and channels are those of the run. No code in the file is executed. Raises UserError for a missing
    or foreign file, or a checkpoint of another network than an MAE.
    """
    checkpoint = _read(Path(path).expanduser())
    try:
        backbone, ema = checkpoint["config"]["backbone"], checkpoint["config"]["sampling"]["ema"]
        target, averages = backbone["_target_"], checkpoint["ema"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a checkpoint of pmf_lightning (it lacks {error})") from error
    if target != _TARGET:
        name = shorten(str(target), 120, placeholder=" ...")
        raise UserError(f"{path}: its network is {name}, not an MAE; give a run of model=mae_r256 or the like")
    try:
        weights = _part(unwrapped(averages[ema], str(path)), "encoder.")
        with torch.device("meta"), at_most_weights(len(weights)):
            encoder = MAEEncoder(**{name: backbone[name] for name in _SIZES})
        if wrong := _differing(encoder.state_dict(), weights):
            raise ValueError(f"{wrong} is missing or of another size")
        encoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except UserError:
        raise
    except Exception as error:  # values of the wrong type fail in many places
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: no encoder can be built from its weights and configuration ({type(error).__name__}: "
            f"{reason}); give a complete checkpoint of model=mae_r256 or the like"
        ) from error
    return encoder.requires_grad_(False).eval()


def _differing(wanted: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> str:
    """Return the name of a weight that is missing in one of both or differs in shape, "" if there is none."""
    names = sorted(wanted.keys() ^ there.keys()) or [name for name in wanted if wanted[name].shape != there[name].shape]
    return names[0] if names else ""


def _read(path: Path) -> Any:
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no such checkpoint; give a run directory of model=mae_r256 or the like, or a file")
    try:
        return load_tensors(file)
    except Exception as error:  # torch may raise any error for a foreign file
        raise UserError(f"{file}: cannot be read as a checkpoint ({type(error).__name__})") from error


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


OFFICIAL_GRID = 32  # patches per side of all released encoders


def pixels_alone(*, source: DataSource, cache_dir: str | None, convnext: nn.Module | None = None) -> DriftFeatures:
    """Return features without an MAE: the pixels as one vector, and the features of ``convnext`` if given."""
    return DriftFeatures(None, convnext)


def published_maps(network: nn.Module, *, source: DataSource, cache_dir: str | None) -> DriftFeatures:
    """Return the pixels as one vector, and the features of ``network`` (TimmMaps)."""
    return DriftFeatures(None, network)


def trained_on_data(
    settings: MAESettings,
    *,
    source: DataSource,
    cache_dir: str | None,
    convnext: nn.Module | None = None,
    classifier: ClassifierSettings | None = None,
    **options: Any,
) -> DriftFeatures:
    """Return features of a small MAE of ``source``'s training split, read from the cache folder or trained.

    ``classifier`` adds the maps of a small convolutional classifier of the same split, in place of ``convnext``.
    ``options`` are those of DriftFeatures. Raises UserError if a network cannot be built or trained.
    """
    if classifier is not None:
        if convnext is not None:
            raise UserError("drift_features.classifier and drift_features.convnext are both set; set one to null")
        if classifier.architecture != "convolutional":
            raise UserError(
                f"drift_features.classifier.architecture={classifier.architecture}: it has no maps; take convolutional"
            )
        convnext = ClassifierMaps(cached_classifier(source, classifier, cache_dir))
    return DriftFeatures(cached_mae(source, settings, cache_dir).encoder, convnext, **options)


def released(
    path: str | None, *, source: DataSource, cache_dir: str | None, convnext: nn.Module | None = None, **options: Any
) -> DriftFeatures:
    """Return features of the released encoder in the folder ``path`` (see ``released_encoder``).

    ``options`` are those of DriftFeatures. Raises UserError for a missing or foreign folder.
    """
    encoder = released_encoder(_given(path, "the folder with ema_params.msgpack and metadata.json"))
    return DriftFeatures(encoder, convnext, **options)


def trained_by_run(
    path: str | None, *, source: DataSource, cache_dir: str | None, convnext: nn.Module | None = None, **options: Any
) -> DriftFeatures:
    """Return features of an encoder trained by the train command (see ``run_encoder``).

    ``options`` are those of DriftFeatures. Raises UserError for a missing or foreign run.
    """
    encoder = run_encoder(_given(path, "the directory of a run of model=mae_r256 or the like"))
    return DriftFeatures(encoder, convnext, **options)


def _given(path: str | None, what: str) -> str:
    if path is None:
        raise UserError(f"drift_features.path is not set: give {what}")
    return path


def released_encoder(path: str | Path) -> MAEEncoder:
    """Return the frozen encoder in a folder of the official code, with ema_params.msgpack and metadata.json.

    Its images have 32 patches per side, like all official ones. Raises UserError for a missing or foreign folder.
    """
    sizes = official_mae_sizes(path)
    patch, names = sizes["patch"], ("channels", "patch", "base_channels", "blocks")
    try:
        with torch.device("meta"):
            encoder = MAEEncoder(resolution=OFFICIAL_GRID * patch, **{name: sizes[name] for name in names})
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return load_official_mae(path, encoder).requires_grad_(False).eval()
