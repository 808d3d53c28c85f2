"""Where a model lies: a local path, a folder of diffusers, or the id of a repository on the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.errors import UserError, called

RUNS, LAST = Path("runs"), "last"  # where runs are made, and the word for the newest of them
DIFFUSERS_INDEX, NETWORK = "model_index.json", "network"  # of a folder of diffusers: its index, and our component
PIPELINE = "PMFLightningPipeline"  # class in that index
RELEASED_SUFFIXES = (".pt", ".pth", ".safetensors")
_MODEL = "a run directory, a checkpoint file or a folder of weights"
INSTALL_HUB = "pip install 'pmf_lightning[hub]'"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_OUR_FILES = ("*.json", "*.safetensors", "*.msgpack", "*.md")  # what is fetched: no code, no pickles


def check_given(option: str, given: Any) -> None:
    """Check what the command line gives as models, a text or a list, without importing PyTorch.

    Raises UserError for "???", which stands for an option that is not set, and for a text that is neither a path that
    exists, the last run nor, by its form, a repository on the hub. Interpolations are not checked.
    """
    for source in given if isinstance(given, list) else [given]:
        if source == MISSING:
            raise not_set(option)
        unknown = isinstance(source, str) and source != LAST and "${" not in source and not is_hub_id(source)
        if unknown and not os.path.exists(os.path.expanduser(source)):
            raise UserError(f"{option}={source}: no such file or folder; give {_MODEL}")


def not_set(option: str) -> UserError:
    """Return the error for an option that names models and is not set."""
    return UserError(f"{option} is not set; give {_MODEL}")


def located(source: str | Path) -> Path:
    """Return the local path of a model; ``source`` is a path, or owner/name or owner/name@revision on the hub.

    Of a folder of diffusers that pmf_lightning.convert wrote, it is the folder of the network. A path is returned as
    it is if it exists, or if nothing on the hub can have its name. Raises UserError for a folder of another pipeline,
    or if the hub cannot be asked.
    """
    path = Path(source).expanduser()
    if not path.exists() and is_hub_id(source):
        path = fetched(str(source))
    return _network_of_pipeline(path, source) if is_pipeline(path) else path


def newest_run(parent: Path, below: str = "*") -> Path | None:
    """Return the run directory at ``below`` in ``parent`` whose last checkpoint is the newest, None without one."""
    found = parent.glob(f"{below}/checkpoints/last.ckpt")
    last = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return last and last.parent.parent


def is_pipeline(folder: Path) -> bool:
    """Whether ``folder`` is a pipeline of diffusers."""
    return (folder / DIFFUSERS_INDEX).is_file()


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` may name a repository on the hub: two parts, and no folder here is called like the first."""
    text = str(source)
    if _HUB_ID.fullmatch(text) is None or Path(text).suffix in (*RELEASED_SUFFIXES, ".ckpt", ".msgpack"):
        return False
    return not Path(text.partition("/")[0]).exists()


def is_released_file(path: Path) -> bool:
    """Whether the suffix of a file is that of released PyTorch weights (checkpoints may have any)."""
    return path.is_file() and path.suffix in RELEASED_SUFFIXES


def _network_of_pipeline(path: Path, source: str | Path) -> Path:
    from pmf_lightning.pipeline.weights_folder import is_weights_folder  # imports PyTorch

    try:
        index: Any = read_json(path / DIFFUSERS_INDEX)
    except (OSError, ValueError) as error:
        trouble = f"its {DIFFUSERS_INDEX} cannot be read ({type(error).__name__})"
        raise UserError(f"{called('ckpt')}={source}: {trouble}") from error
    name = index.get("_class_name") if isinstance(index, dict) else None
    name = name[-1] if isinstance(name, list) and name else name
    if name != PIPELINE or not is_weights_folder(path / NETWORK):
        raise UserError(
            f"{called('ckpt')}={source}: recognised as a diffusers pipeline ({name!s:.60}), but not one that "
            "pmf_lightning.convert wrote; give one of format=diffusers"
        )
    return path / NETWORK


def fetched(hub_id: str, **options: Any) -> Path:
    """Return the local snapshot of a repository on the hub; only files without code are fetched.

    ``options`` are those of huggingface_hub.snapshot_download, such as ``token``. Raises UserError.
    """
    here = f"{called('ckpt')}={hub_id}: no such file or folder here"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{here}; as an id of the hub: {INSTALL_HUB}") from error
    repository, _, revision = hub_id.partition("@")
    try:
        return Path(
            snapshot_download(repository, **{"revision": revision or None, **options}, allow_patterns=[*_OUR_FILES])
        )
    except Exception as error:  # of the network, of the hub, or of its cache
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else type(error).__name__
        raise UserError(
            f"{here}, and the Hugging Face hub gave nothing of this name ({why}); "
            f"where there is a network: hf download {repository} --local-dir FOLDER, then give that folder"
        ) from error
