"""Load a generator from anything that holds one: a run, a checkpoint, weights in any format, or an id of the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from pmf_lightning.config.compose import compose
from pmf_lightning.distributed.launch import print_on_main
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.checkpoints import load_checkpoint, load_with_averages, module_of
from pmf_lightning.pipeline.conversion import from_official, from_release
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.sources import LAST, RUNS, is_pipeline, is_released_file, located, newest_run, not_set
from pmf_lightning.pipeline.weights_folder import StoredWeights
from pmf_lightning.utils.errors import UserError, called
from pmf_lightning.utils.precision import Number
from pmf_lightning.weights import flax, read_tensors

_SHAPING = ("name", "data", "backbone", "objective", "conditions", "sampling")  # what describes a released model


def load(
    source: str | Path,
    ema: str | Number | None = None,
    trust: Sequence[str] = (),
    model: str | None = None,
    data: str | None = None,
) -> GenerativeModule:
    """Load a module in eval mode, with its configuration and class names; no code of the source is executed.

    Args:
        source: a run directory (its last checkpoint), a checkpoint file, a folder that pmf_lightning.convert wrote
            (weights or format=diffusers), a released file of pMF, iMF or JiT (.pt, .pth, also of FD-loss and RDM), of
            Drifting (.msgpack, or its folder), or owner/name of a repository on the Hugging Face hub that holds one of
            these folders.
        ema: average or set of the weights, as for ``load_checkpoint``; None: the one of evaluation.
        trust: packages of the user whose classes a stored configuration may build.
        model, data: presets of a released file; None: recognised from its shapes.

    Raises UserError, naming what the source was recognised as, if it is missing, damaged or foreign.
    """
    given = [f"{group}={name}" for group, name in (("model", model), ("data", data)) if name is not None]
    if data is not None and (path := located(source)).exists() and not holds_release(path):
        raise UserError(f"data={data}: {source} has its own configuration; leave data out")
    wanted = compose(["in=.", "out=.", *given], "convert") if given else None
    return load_configured(source, ema, trust, wanted)


def load_configured(
    source: str | Path, ema: str | Number | None, trust: Sequence[str], cfg: DictConfig | None
) -> GenerativeModule:
    """Load like ``load``; ``cfg`` holds what ``model=`` and ``data=`` of a command chose for a released file.

    Other sources have a configuration of their own: with them, ``model=`` is refused.
    """
    path = located(source)
    stored = stored_release(path, source, _released_options(cfg, path, ema))
    if stored is not None:
        return module_of(stored, source, trust)
    if cfg is not None and cfg.get("name"):
        raise UserError(f"model={cfg.name}: {source} has its own configuration; leave model out")
    return _with_its_decoder(load_checkpoint(path, ema, trust), path)


def with_last_run(cfg: DictConfig, key: str = "ckpt") -> DictConfig:
    """Return ``cfg`` in which "last", as the option ``key`` or in its list, is the newest run below runs/; print that.

    The newest run is the one whose last checkpoint is. Raises UserError if there is none, or if the option is not set.
    """
    if OmegaConf.is_missing(cfg, key):
        raise not_set(key)
    given = cfg[key]
    names = list(given) if isinstance(given, ListConfig) else [given]
    if LAST not in names:
        return cfg
    run = newest_run(RUNS, below="**")
    if run is None:
        raise UserError(f"{key}=last: no run with a checkpoint under {RUNS.absolute()}; give a run directory or a file")
    print_on_main([f"{key}=last: {run}"])
    named = [str(run) if name == LAST else name for name in names]
    return OmegaConf.merge(cfg, {key: named if isinstance(given, ListConfig) else named[0]})


def load_every_average(source: str | Path, trust: Sequence[str]) -> tuple[GenerativeModule, dict[str, Mapping]]:
    """Load like ``load``; also return every set of weights by name, as ``load_with_averages`` does."""
    path = located(source)
    stored = stored_release(path, source, _released_options(None, path, None))
    if stored is None:
        module, sets = load_with_averages(path, trust)
        return _with_its_decoder(module, path), sets
    return module_of(stored, source, trust), {stored.about.weights: {}}


def _with_its_decoder(module: GenerativeModule, path: Path) -> GenerativeModule:
    """Return the module, whose decoder is that of the diffusers folder around ``path`` if there is one."""
    vae = path.parent / "vae"
    if module.decoder is not None and is_pipeline(path.parent) and vae.is_dir():
        module.decoder = replace(module.decoder, weights=str(vae))
    return module


def stored_release(path: Path, source: str | Path, cfg: DictConfig) -> StoredWeights | None:
    """Return the weights of a released file by our names; None if ``path`` is no released file.

    ``cfg`` is that of ``from_official``. Raises UserError, naming ``source`` as ckpt and the kind of the file.
    """
    drifting = path.exists() and flax.is_release(path)
    contents = None if drifting else _official_contents(path)  # read once: it may have gigabytes
    if not drifting and contents is None:
        return None
    try:
        return from_release(path, cfg) if drifting else from_official(contents, path, cfg)
    except UserError as error:
        text = str(error)
        kind = "a release of flax (.msgpack)" if drifting else "official weights"
        named = text.startswith((f"{called('ckpt')}=", f"{called('ema')}=", "model=", "data=", "backbone"))
        raise UserError(text if named else f"{called('ckpt')}={source}: recognised as {kind}; {text}") from error


def holds_release(path: Path) -> bool:
    """Whether ``path`` is a released file or folder; raises UserError for a file that cannot be read."""
    return path.exists() and (flax.is_release(path) or _official_contents(path) is not None)


def _released_options(cfg: DictConfig | None, path: Path, ema: str | Number | None) -> DictConfig:
    """Return the options of a command that describe a released file, as ``from_official`` reads them."""
    keys = [key for key in _SHAPING if cfg is not None and key in cfg]
    if flax.is_release(path) and "name" not in keys:
        keys = []  # its sizes choose the preset and the data
    wanted = OmegaConf.masked_copy(cfg, keys) if keys else OmegaConf.create({})
    return OmegaConf.merge(wanted, {"ema": ema})


def _official_contents(path: Path) -> Any:
    """Return the contents of a file of official weights; None for anything else, such as a checkpoint of ours."""
    if not is_released_file(path):
        return None
    if path.suffix == ".safetensors":
        if weights_folder.is_weights_folder(path.parent) and path == weights_folder.weights_in(path.parent):
            raise UserError(f"{called('ckpt')}={path}: it is part of the folder {path.parent}; give that folder")
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            trouble = f"cannot be read as safetensors ({type(error).__name__})"
            raise UserError(f"{called('ckpt')}={path}: {trouble}") from error
    contents = read_tensors(path)
    return None if is_checkpoint(contents) else contents


def is_checkpoint(contents: object) -> bool:
    """Whether the contents of a file are those of a checkpoint of this package."""
    return isinstance(contents, Mapping) and {"state_dict", "config"} <= contents.keys()
