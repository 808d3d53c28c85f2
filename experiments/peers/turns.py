"""Shared by the scripts of this folder: our side, the modules of the other repository, turns of both, and the JSON."""

import importlib
import itertools
import json
import platform
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmf_lightning.utils.errors import UserError

SIZE_TOLERANCE = 0.01  # relative difference of the numbers of trained weights


@dataclass(frozen=True)
class Peer:
    """A clone of another repository: its folder, and the address to clone it from."""

    folder: Path
    address: str

    def module(self, name: str) -> types.ModuleType:
        """Import a module of the clone; raises UserError if the file, or a package that it needs, is missing.

        The ``__init__`` of its package is skipped: it imports what a step does not need.
        """
        path = self.folder / (name.replace(".", "/") + ".py")
        if not path.is_file():
            raise UserError(f"{path}: no such file; git clone {self.address}, and give the folder of the clone")
        sys.path.insert(0, str(self.folder))
        package = name.rpartition(".")[0]
        if package:
            sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(self.folder / package)]
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"{path}: it needs {error.name}, which is not installed; pip install it") from error

    def commit(self) -> str | None:
        """Return the commit of the clone; None if the folder is no git repository."""
        asked = ["git", "-C", str(self.folder), "rev-parse", "--show-prefix", "HEAD"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        prefix, _, commit = done.stdout.partition("\n")
        return commit.strip() if done.returncode == 0 and not prefix else None


@dataclass(frozen=True)
class Side:
    """The other side: ``work`` is one step, or the sampling of one batch; ``parameters`` counts trained weights."""

    work: Callable[[], object]
    parameters: int
    notes: str = ""


def main(page: str, address: str, defaults: list[str], other: Callable[[Peer, Any], Side]) -> None:
    """Run a script: FOLDER [override ...]; prints ``page`` without arguments, and an error as one line."""
    given = sys.argv[1:]
    if not given or {"-h", "--help"} & set(given):
        print(page)
        return
    try:
        result = race(Peer(Path(given[0]).expanduser().resolve(), address), [*defaults, *given[1:]], other)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(result, indent=2))


def race(peer: Peer, overrides: list[str], other: Callable[[Peer, Any], Side]) -> dict[str, Any]:
    """Time both sides in turns; return, and write to ``out``, the medians in ms, the ratio theirs / ours, and sizes."""
    if not peer.folder.is_dir():
        raise UserError(f"{peer.folder}: no such folder; git clone {peer.address}, and give the folder of the clone")
    import torch  # here, because --help and a missing folder do without

    from pmf_lightning import build, compose
    from pmf_lightning.profiling.benchmarks import timing

    cfg = compose(overrides, "benchmark")
    if cfg.what not in OURS:
        raise UserError(f"what={cfg.what}: give one of {', '.join(OURS)}")
    if cfg.trainer.accelerator != "cpu" or cfg.trainer.precision != "32-true":
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator} trainer.precision={cfg.trainer.precision}: the other side "
            "runs on the CPU in float32, so this one does too; leave both out"
        )
    if cfg.what == "sampling" and cfg.compile:
        raise UserError("compile=true: our sampling runs without the compiler; leave it out")
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    side, module = other(peer, cfg), build(cfg)
    ours = OURS[cfg.what](module, cfg)
    parameters = sum(weight.numel() for weight in module.network.parameters() if weight.requires_grad)
    if cfg.what == "step" and abs(side.parameters / parameters - 1) > SIZE_TOLERANCE:
        raise UserError(
            f"{cfg.name}: {parameters:,} weights here, {side.parameters:,} there; give sizes that both have"
        )
    works, processor = {"ours": ours, "peer": side.work}, {"ours": [], "peer": []}
    times = timing.time_interleaved(
        {name: timing.on_processor(work, processor[name]) for name, work in works.items()}, cfg.repeats
    )
    result = {
        **{"what": cfg.what, "peer": peer.folder.name, "commit": peer.commit(), "model": cfg.name},
        **{"images": images(cfg), "repeats": cfg.repeats, "width": cfg.backbone.width},
        **{"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        **{"device": "cpu", "precision": "32-true", "compile": cfg.compile},
        **{"parameters": {"ours": parameters, "peer": side.parameters}, "notes": side.notes},
        **timing.compare(times["ours"], times["peer"], "peer"),
        "processor": timing.compare(processor["ours"][1:], processor["peer"][1:], "peer"),  # without the first turns
    }
    if cfg.out is not None:
        Path(cfg.out).write_text(json.dumps(result, indent=2) + "\n")
    return result


def images(cfg: Any) -> int:
    """Return the number of images at once."""
    return cfg.images_at_once or cfg.batch


def our_step(module: Any, cfg: Any) -> Callable[[], object]:
    """Return our loss and gradients, with new draws in each call, as training has them."""
    import torch

    from pmf_lightning.profiling.benchmarks.step import make_bench

    bench = make_bench(module, images(cfg), torch.device("cpu"), str(cfg.trainer.precision), cfg.compile, averages=0)
    steps = itertools.count()
    return lambda: bench.backward(next(steps))


def our_sampling(module: Any, cfg: Any) -> Callable[[], object]:
    """Return our sampling of one batch with the options of ``cfg.sampling``."""
    from pmf_lightning.profiling.benchmarks.sampling import make_sampler
    from pmf_lightning.sampling.generate import OPTIONS

    options = {name: cfg.sampling[name] for name in OPTIONS}
    return make_sampler(module.eval(), images(cfg), str(cfg.trainer.precision), options)


OURS = {"step": our_step, "sampling": our_sampling}  # by what=
