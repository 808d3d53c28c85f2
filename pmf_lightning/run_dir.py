"""Where a run writes, and how it finds its way back after a stop."""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.checkpoint_files import LAST, is_whole, newest_whole, whole_beside
from pmf_lightning.errors import UserError
from pmf_lightning.folders import ERROR, RUN_DIR, writable
from pmf_lightning.locks import Held, held

ROOT = Path("runs")


def choose(cfg: DictConfig) -> Path:
    """Return the run directory of a configuration: made, and known to be writable.

    ``run_dir`` when set; else, with ``ckpt=last``, the newest run of this model and data that has a checkpoint; else a
    new one under runs/, named after model, data and the time. Raises UserError.
    """
    if cfg.run_dir is None and not _is_first() and RUN_DIR in os.environ:
        return Path(os.environ[RUN_DIR])
    several = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if several and cfg.run_dir is None:
        raise UserError("run_dir=null: under torchrun and srun every process chooses by itself; set run_dir")
    if cfg.run_dir is not None:
        folder = Path(cfg.run_dir)
    elif cfg.ckpt == "last":
        folder = _newest(ROOT / f"{cfg.name}-{cfg.data.name}")
    else:
        folder = _fresh(ROOT / f"{cfg.name}-{cfg.data.name}")
    writable(folder / "checkpoints", "run_dir")
    if cfg.ckpt is None and any((folder / "checkpoints").glob("*.ckpt")):
        raise UserError(f"run_dir={folder}: it holds a finished or stopped run; add ckpt=last to go on with it")
    os.environ[RUN_DIR] = str(folder)
    return folder


def sole_run(folder: Path) -> AbstractContextManager[None]:
    """Keep other runs out of ``folder`` while the block runs; raises Held where one is at work there.

    Of several processes of a run the first keeps it for all of them.
    """
    if not first_process():
        return nullcontext()
    return held(folder / ".lock", f"run_dir={folder}", "is training there; wait for it, or end it")


def first_process() -> bool:
    """Tell whether this process is the only one of its run, or of all its nodes the first."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextmanager
def errors_kept(cfg: DictConfig) -> Iterator[None]:
    """Keep what ends a run as error.txt of its directory, one line, until an attempt ends well.

    Bad input that is refused before there is a directory leaves none, but for ckpt=auto, as runs of a sweep have: its
    report says why an arm is missing.
    """
    if _is_first():
        os.environ.pop(RUN_DIR, None)  # of the last job of a multirun
    try:
        yield
    except Held:
        raise  # what lies there is the other run's
    except Exception as error:
        folder = _known(cfg)
        if folder and (folder.is_dir() or cfg.get("ckpt") == "auto"):
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / ERROR).write_text(f"{kind}{' '.join(str(error).split())}\n")
        raise
    if folder := _known(cfg):
        (folder / ERROR).unlink(missing_ok=True)


def _is_first() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _known(cfg: DictConfig) -> Path | None:
    """Return the directory of this run, where this process is the one that writes there and knows it."""
    folder = cfg.run_dir or os.environ.get(RUN_DIR)
    return Path(folder) if folder and _is_first() else None


def finished(cfg: DictConfig) -> dict | None:
    """Return the summary of ``run_dir`` where ckpt=auto finds this very run complete, else None.

    Raises UserError where the directory holds a run of another configuration.
    """
    if cfg.ckpt != "auto":
        return None
    if cfg.run_dir is None:
        raise UserError("ckpt=auto: it goes on with what lies in run_dir; set run_dir")
    folder = Path(cfg.run_dir)
    if not (folder / "config.yaml").is_file():
        return None
    there = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    asked = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), resolve=True)
    said = {"ckpt", "study", "logger"}  # not what is trained: where to go on, the words of a study, who is told
    other = sorted(key for key in (there.keys() | asked.keys()) - said if there.get(key) != asked.get(key))
    if other:
        raise UserError(f"run_dir={folder}: it holds a run with another {', '.join(other)}; set another run_dir")
    summary = folder / "summary.json"
    found = json.loads(summary.read_text()) if summary.is_file() else None
    return found if found and not found["stopped_early"] else None


def checkpoint_to_resume(cfg: DictConfig, folder: Path) -> Path | None:
    """Return the checkpoint that ``ckpt`` asks for, or None for a fresh start; raises UserError where it is missing.

    Where last.ckpt is damaged, ckpt=last and ckpt=auto take the newest whole checkpoint beside it, and say so.
    """
    if cfg.ckpt is None:
        return None
    if cfg.ckpt not in ("auto", "last"):
        return _undamaged(Path(cfg.ckpt))
    path = folder / "checkpoints" / LAST
    if is_whole(path):
        return path
    damage = f"{path} is damaged" if path.is_file() else f"{path} is missing"
    if (other := newest_whole(path.parent)) is not None:
        _warn(f"{damage}; going on with {other}, the newest that is whole")
        return other
    if path.is_file():
        raise UserError(f"ckpt={cfg.ckpt}: {damage}, and {whole_beside(path)}; start anew in another run_dir")
    if cfg.ckpt == "last":
        raise UserError(f"ckpt=last: {folder} holds no checkpoint; leave ckpt out to start afresh")
    return None


def _undamaged(path: Path) -> Path:
    if zipfile.is_zipfile(path) and not is_whole(path):  # another kind of file is refused when it is read
        raise UserError(f"ckpt={path}: damaged; {whole_beside(path)}")
    return path


@rank_zero_only
def _warn(text: str) -> None:
    print(f"warning: {text}")


def _newest(parent: Path) -> Path:
    found = sorted(parent.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"ckpt=last: no run with a checkpoint under {parent}; set run_dir, or leave ckpt out")
    return found[-1].parent.parent


def _fresh(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = (parent / (stamp if not again else f"{stamp}_{again}") for again in range(1000))
    for folder in names:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue  # another job of the same second
        except OSError as error:
            raise UserError(f"run_dir={folder}: cannot be made ({error.strerror}); set another run_dir") from error
        return folder
    raise UserError(f"run_dir: no free name under {parent}; set run_dir")
