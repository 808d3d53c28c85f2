"""Measure the speed of a part: python -m pmf_lightning.benchmark what=optimizer model=pmf_digits"""

import json
import platform
from pathlib import Path

import torch
from omegaconf import DictConfig

from pmf_lightning.assemble import build
from pmf_lightning.benchmarks.optimizer import benchmark_optimizer
from pmf_lightning.command import command
from pmf_lightning.errors import UserError, near
from pmf_lightning.folders import writable

BENCHMARKS = {"optimizer": benchmark_optimizer}


def benchmark(cfg: DictConfig) -> dict:
    """Run the benchmark ``cfg.what`` and return its numbers with those of the machine; raises UserError."""
    if cfg.what not in BENCHMARKS:
        raise UserError(f"what={cfg.what}: there is no such benchmark; {near(cfg.what, BENCHMARKS)}")
    if cfg.repeats < 1:
        raise UserError(f"repeats={cfg.repeats}: at least one is needed")
    if cfg.out is not None:
        writable(Path(cfg.out).parent, "out")
    numbers = BENCHMARKS[cfg.what](build(cfg).network, cfg.repeats)
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"what": cfg.what, "model": cfg.name, "repeats": cfg.repeats, **machine, **numbers}
    if cfg.out is not None:
        Path(cfg.out).write_text(json.dumps(result, indent=2) + "\n")
    return result


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure and print."""
    result = benchmark(cfg)
    print(json.dumps(result, indent=2))
    muon = result["muon"]
    print(
        f"{muon['count']} matrices: {muon['ours_ms']:.1f} ms, torch.optim.Muon {muon['torch_ms']:.1f} ms, "
        f"{muon['ratio']:.1f}x ({muon['ratio_min']:.1f} to {muon['ratio_max']:.1f})"
    )


if __name__ == "__main__":
    main()
