"""Weights folder for sampling: model.safetensors and config.json, which describes the weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_folder
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.state_names import unwrapped

FORMAT, VERSION = "pmf_lightning weights", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"  # the same, as a component of a diffusers pipeline
_ASIDE = "official."  # name prefix of tensors that exist only in the official format


@dataclass(frozen=True)
class WeightsInfo:
    """Description of a folder's weights; ``config.json`` holds these fields and its format and version.

    Args:
        family: "pMF", "iMF" or "JiT" if the architecture is the official one, otherwise None.
        weights: name of the average ("2000k", "raw"), "official", or the set of JiT's file ("model_ema1").
        source: ``file``, the name of the source file, and its ``sha256``.
        config: the resolved configuration; ``backbone.heads``, if present, names the stored heads.
        class_names: in the order of the labels; None: unknown.
    """

    family: str | None
    weights: str
    source: Mapping[str, str]
    config: dict
    class_names: list[str] | None = None


@dataclass(frozen=True)
class StoredWeights:
    """Contents of a weights folder.

    Args:
        network: all weights of the network of ``about.config``, by our names.
        aside: official names and values of tensors that our network does not have (iMF's final v layer without
            v-heads, JiT's position table); saved for the conversion back.
        about: description of the weights.
    """

    network: dict[str, Tensor]
    aside: dict[str, Tensor]
    about: WeightsInfo


def is_weights_folder(path: str | Path) -> bool:
    """Whether ``path`` is a weights folder, possibly a damaged one."""
    return (Path(path) / CONFIG).is_file()


def weights_in(folder: str | Path) -> Path:
    """Return the file of the weights in ``folder``; that of diffusers if there is only this one."""
    diffusers = Path(folder) / DIFFUSERS_WEIGHTS
    ours = Path(folder) / WEIGHTS
    return diffusers if diffusers.is_file() and not ours.is_file() else ours


def write(folder: Path, stored: StoredWeights, force: bool = False, weights: str = WEIGHTS) -> None:
    """Write ``folder`` atomically, with the file name ``weights``; with ``force`` what is there is replaced.

    Raises OSError for a disk error, FileExistsError if ``folder`` exists without ``force``.
    """
    if folder.exists() and not force:
        raise FileExistsError(f"{folder} exists")
    with atomic_folder(folder) as draft:
        draft.mkdir()
        write_into(draft, stored, weights)


def write_into(folder: Path, stored: StoredWeights, weights: str = WEIGHTS) -> None:
    """Write the two files into an existing folder; raises OSError for a disk error."""
    about = {"format": FORMAT, "version": VERSION, **asdict(stored.about)}
    tensors = stored.network | {f"{_ASIDE}{name}": value for name, value in stored.aside.items()}
    (folder / CONFIG).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / weights, {"format": "pt"})
    (folder / weights).chmod((folder / CONFIG).stat().st_mode)  # safetensors gives the owner access only


def read(folder: str | Path) -> StoredWeights:
    """Read a folder without executing code from it; UserError if it is damaged or of another format."""
    folder = Path(folder)
    about = _read_about(folder / CONFIG)
    weights = weights_in(folder)
    try:
        with safe_open(weights, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {WEIGHTS}; convert again") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} cannot be read ({type(error).__name__}); convert again") from error
    tensors = unwrapped(tensors, str(weights))
    network = {name: value for name, value in tensors.items() if not name.startswith(_ASIDE)}
    aside = {name.removeprefix(_ASIDE): value for name, value in tensors.items() if name.startswith(_ASIDE)}
    return StoredWeights(network, aside, about)


def _read_about(path: Path) -> WeightsInfo:
    try:
        about = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({type(error).__name__}); convert again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not a {CONFIG} of pmf_lightning; give a folder that pmf_lightning.convert wrote")
    if about.get("version") != VERSION:
        version = about.get("version")
        raise UserError(f"{path} has format version {version}, this package reads {VERSION}; convert again")
    fields = {"family": (str, type(None)), "weights": str, "source": dict, "config": dict}
    wrong = [name for name, kind in fields.items() if name not in about or not isinstance(about[name], kind)]
    if not wrong and not all(isinstance(value, str) for value in about["source"].values()):
        wrong = ["source"]
    if wrong:
        raise UserError(f"{path} has no valid {', '.join(wrong)}; convert again")
    names = about.get("class_names")  # missing in older folders; checked where the number of classes is known
    return WeightsInfo(**{name: about[name] for name in fields}, class_names=names if isinstance(names, list) else None)
