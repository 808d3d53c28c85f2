"""Load a module from a checkpoint or a weights folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from pmf_lightning.config.compose import compose, one_line
from pmf_lightning.config.presets import published_of
from pmf_lightning.models.drifting_vit import DriftingViT
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.averages import find_average
from pmf_lightning.pipeline.build import build
from pmf_lightning.pipeline.checkpoint_io import intact_alternative
from pmf_lightning.pipeline.class_names import names_beside, stored_names
from pmf_lightning.pipeline.migrate import migrate_config
from pmf_lightning.pipeline.module import GenerativeModule, unwrap_checkpoint
from pmf_lightning.pipeline.trusted import check_stored
from pmf_lightning.pipeline.weights_folder import StoredWeights, WeightsInfo
from pmf_lightning.utils.cache import file_sha256
from pmf_lightning.utils.errors import UserError, called
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.tensor_files import at_most_weights, load_tensors
from pmf_lightning.weights import flax
from pmf_lightning.weights.drifting import generator_preset, generator_tensors
from pmf_lightning.weights.flax import read_msgpack

RELEASED = "official"  # name of the weights of a release


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file ``path``, or the last checkpoint of the run directory ``path``; UserError if none."""
    path, source = Path(path), f"{called('ckpt')}={path}"
    if weights_folder.is_weights_folder(path):
        raise UserError(f"{source}: this folder holds weights to sample with; training resumes from a checkpoint")
    if path.is_dir():
        if not (path / "checkpoints" / "last.ckpt").is_file():
            raise UserError(f"{source}: this folder holds no checkpoints/last.ckpt; give a run directory or a file")
        return path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError(f"{source}: no such file or folder; give a run directory or a checkpoint file")
    return path


def weights_file(path: str | Path) -> Path:
    """Return the file of a checkpoint, a weights folder or a release; UserError if none."""
    if flax.is_release(path):
        return flax.find(path)[0]
    return weights_folder.weights_in(path) if weights_folder.is_weights_folder(path) else find_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this package without executing pickled code; UserError for anything else."""
    path = find_checkpoint(path)
    source = f"{called('ckpt')}={path}"
    try:
        checkpoint = load_tensors(path, mmap=True)  # tensors are read when used
    except Exception as error:
        trouble = f"cannot be read as a checkpoint ({type(error).__name__})"
        raise UserError(f"{source}: {trouble}; {intact_alternative(path)}") from error
    parts = ("config", "state_dict", "ema")
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(part), Mapping) for part in parts):
        raise UserError(f"{source}: not a checkpoint of pmf_lightning (it lacks config, state_dict or ema)")
    return unwrap_checkpoint(checkpoint, source)


def load_checkpoint(path: str | Path, ema: str | Number | None = None, trust: Sequence[str] = ()) -> GenerativeModule:
    """Build the module of a checkpoint with the weights ``ema``; None: the average of evaluation, "raw": no average.

    An average is found by its name ("500k", a half-life in images) or its decay per step (0.9999): see
    pipeline/averages.py.

    A folder written by pmf_lightning.convert, or a release of Drifting's generators (.msgpack, or its folder), holds
    one set of weights: ``ema`` is None or names that set. ``trust`` names packages whose classes the checkpoint may
    build, besides those of PMF_TRUST and of installed plugins (pipeline/plugins.py).
    Raises UserError for a missing or foreign file, an unknown average, or a checkpoint that names foreign code.
    """
    if holds_one_set(path):
        return _load_one_set(Path(path), ema, trust)[0]
    module, sets = load_with_averages(path, trust)
    name = find_average(module.config["sampling"]["ema"] if ema is None else ema, sets, module.config)
    module.network.load_state_dict(sets[name], strict=False)
    module.average = name
    return module


def load_with_averages(
    path: str | Path, trust: Sequence[str] = ()
) -> tuple[GenerativeModule, dict[str, Mapping[str, Tensor]]]:
    """Build the module of a checkpoint; return it with every set of weights in the checkpoint, by name.

    The network holds the unaveraged weights, "raw". Load another set by ``load_state_dict``, not strict: weights that
    are not trained have no average. A folder written by pmf_lightning.convert, or a release, has one set, which is
    already loaded; its entry is empty. Raises UserError for a missing or foreign file, or one that names foreign code.
    """
    if holds_one_set(path):
        module, name = _load_one_set(Path(path), None, trust)
        return module, {name: {}}
    checkpoint, source = read_checkpoint(path), f"{called('ckpt')}={path}"
    averages = checkpoint["ema"]
    raw = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    module = build_stored(checkpoint["config"], source, len(raw), trust)
    classes = getattr(module.network, "classes", None)
    names = stored_names(checkpoint.get("class_names"), classes)
    module.class_names = names_beside(find_checkpoint(path), classes) if names is None else names
    _place(module.network, raw, path, copy=True)  # copied because the file is memory-mapped
    trained = {name for name, value in module.network.named_parameters() if value.requires_grad}
    for name, values in averages.items():
        fits = isinstance(values, Mapping) and trained <= values.keys() <= raw.keys()
        if not fits or any(_shape(value) != raw[key].shape for key, value in values.items()):
            raise UserError(f"{source}: its average {name} is not one of this network; {intact_alternative(path)}")
    return module.eval(), {**averages, "raw": raw}


def build_stored(config: Any, source: str, stored: int, trust: Sequence[str] = ()) -> GenerativeModule:
    """Build the module of a stored configuration, without weights and without executing foreign code.

    ``source`` names the configuration in errors. The network is on the meta device, without memory. A network with far
    more than ``stored`` weights (tensors) is refused. ``trust`` is that of ``check_stored``. Raises UserError.
    """
    config = check_stored(config, source, trust)
    try:
        with at_most_weights(stored):
            return build(OmegaConf.create(migrate_config(config)), empty=True)
    except UserError as error:
        raise UserError(shorten(f"{source}: {error}", 500, placeholder=" ...")) from error
    except Exception as error:  # values of the wrong kind fail in many places
        message = shorten(one_line(error), 200, placeholder=" ...")
        raise UserError(
            f"{source}: no module can be built from its configuration ({type(error).__name__}: {message})"
        ) from error


def holds_one_set(path: str | Path) -> bool:
    """Whether ``path`` is a folder written by pmf_lightning.convert, or a release of Drifting's generators."""
    return weights_folder.is_weights_folder(path) or flax.is_release(path)


def read_release(path: str | Path, cfg: DictConfig | None = None) -> StoredWeights:
    """Read a released .msgpack of Drifting's generator, or its folder, as the model of ``cfg``.

    If ``cfg`` is None, the preset with the file's sizes is used, on its data. Raises UserError, naming the path as
    ckpt.
    """
    source = f"{called('ckpt')}={path}"
    try:
        file, _ = flax.find(path)
        arrays = read_msgpack(file)
    except UserError as error:
        named = str(error).startswith(str(Path(path).expanduser()))
        raise UserError(f"{called('ckpt')}={error}" if named else f"{source}: {error}") from error
    if cfg is None:
        name = generator_preset(arrays, source)
        cfg = compose([f"model={name}", f"data={published_of(name).data}"])
    module = build(cfg, empty=True)
    if not isinstance(module.network, DriftingViT):
        raise UserError(f"{source}: holds weights of Drifting; choose model={generator_preset(arrays, source)}")
    about = WeightsInfo("Drifting", RELEASED, {"file": file.name, "sha256": file_sha256(file)}, module.config)
    return StoredWeights(generator_tensors(arrays, module.network, source), {}, about)


def _load_one_set(folder: Path, ema: str | Number | None, trust: Sequence[str]) -> tuple[GenerativeModule, str]:
    """Return the module and the name of its weights."""
    stored = weights_folder.read(folder) if weights_folder.is_weights_folder(folder) else read_release(folder)
    about = stored.about
    if ema is not None and not _is_average(ema, about):
        key = called("ema")
        raise UserError(f"{key}={ema}: {folder} holds one set of weights, {about.weights}; leave {key} out")
    return module_of(stored, folder, trust), about.weights


def module_of(stored: StoredWeights, source: str | Path, trust: Sequence[str] = ()) -> GenerativeModule:
    """Build the module of one set of weights, in eval mode; raises UserError, which names ``source`` as ckpt.

    ``trust`` is that of ``check_stored``.
    """
    about = stored.about
    module = build_stored(about.config, f"{called('ckpt')}={source}", len(stored.network), trust)
    _place(module.network, stored.network, source)
    module.average = about.weights
    module.class_names = stored_names(about.class_names, getattr(module.network, "classes", None))
    return module.eval()


def _is_average(ema: str | Number, about: weights_folder.WeightsInfo) -> bool:
    """Whether ``ema`` names the weights of a folder."""
    try:
        return find_average(ema, [about.weights], about.config) == about.weights
    except (UserError, KeyError, TypeError):
        return False


def _place(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path, copy: bool = False) -> None:
    """Assign ``weights`` to a network on the meta device, in float32 or wider; with ``copy`` no memory is shared.

    Raises UserError, naming ``source``, unless names and shapes are exactly the network's.
    """
    shapes, there = ({name: _shape(value) for name, value in held.items()} for held in (network.state_dict(), weights))
    if shapes != there:
        wrong = sorted(map(str, shapes.keys() ^ there.keys())) or [k for k in shapes if shapes[k] != there[k]]
        raise UserError(f"{source}: weights and configuration do not belong together ({', '.join(wrong[:3])} ...)")
    wide = {k: value.to(torch.promote_types(value.dtype, torch.float32), copy=copy) for k, value in weights.items()}
    network.load_state_dict(wide, assign=True)


def _shape(value: Any) -> torch.Size | None:
    """Return the shape of a weight, None for anything but a real tensor."""
    return value.shape if isinstance(value, Tensor) and not value.is_complex() else None
