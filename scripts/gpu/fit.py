"""Find the largest micro-batch that fits on a GPU, by doubling: python fit.py gpu fit.json [overrides]"""

import gc
import json
import sys

import torch

from pmf_lightning import build, compose
from pmf_lightning.profiling.benchmarks.step import averaging, make_bench

MODELS = ("pmf_b16", "pmf_h16")
LARGEST = 1024


def main(device: str, out: str, *overrides: str) -> None:
    """Find the largest micro-batch of each model and write the table."""
    table = {}
    for model in MODELS:
        for recompute in (False, True):
            name = f"{model}{' recompute' if recompute else ''}"
            table[name] = largest(model, recompute, device, overrides)
            print(name, table[name])
    with open(out, "w") as file:
        json.dump({"precision": "bf16-mixed", "largest_micro_batch": table}, file, indent=1)


def largest(model: str, recompute: bool, device: str, overrides: tuple[str, ...]) -> dict:
    """Return the largest power of two that fits, and its peak memory."""
    cfg = compose(
        [f"model={model}", "data=imagenet256", "perceptual=none", f"activation_checkpointing={recompute}", *overrides]
    )
    module, passed = build(cfg), {"images": 0, "peak_gb": None}
    where = torch.device("cuda" if device == "gpu" else device)
    size = 8 if where.type == "cuda" else 2
    while size <= (LARGEST if where.type == "cuda" else 4):
        gc.collect()  # reference cycles keep the memory of a failed pass, and of networks with recompute
        try:
            if where.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            bench = make_bench(module, size, where, "bf16-mixed", False, len(cfg.ema.halflife_kimg))
            average = averaging(bench)
            bench.backward()
            bench.optimizer.step()
            average()
        except torch.OutOfMemoryError:
            break
        finally:
            bench = average = None
        peak = torch.cuda.max_memory_allocated() / 1e9 if where.type == "cuda" else None
        passed = {"images": size, "peak_gb": peak}
        size *= 2
    return passed


if __name__ == "__main__":
    main(*sys.argv[1:])
