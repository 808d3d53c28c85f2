"""Benchmark our optimiser step against torch's, on the parameters of one network."""

import statistics
from collections.abc import Callable

import torch
from torch import nn

from pmf_lightning.optim.muon_adam import MuonAdam
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.profiling.benchmarks.timing import compare, milliseconds, time_interleaved
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError

RATE = 1e-3  # the time does not depend on it


def benchmark_optimizer(
    module: nn.Module, repeats: int = 20, ns_dtype: str = "auto"
) -> dict[str, dict[str, int | float]]:
    """Time MuonAdam against torch.optim.Muon on the matrices of ``module`` and torch.optim.NAdam on the rest.

    Returns one table for each kind of parameter of ``module``, "muon" and "adam": ``count``, ``elements``, the medians
    ``ours_ms`` and ``torch_ms`` in milliseconds per step, ``ratio`` (the median of torch's time over ours) and its
    range ``ratio_min``, ``ratio_max``. "step" has ``ours_ms`` of the complete step. The two optimisers alternate in one
    process, each on its own copies with the same gradients; ``module`` is not changed. ``ns_dtype`` is MuonAdam's;
    torch.optim.Muon always iterates in bfloat16. Raises UserError for fewer than one repeat, or a module without
    trainable parameters.
    """
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; give at least 1")
    groups = parameter_groups(module)
    if not groups:
        raise UserError(f"{type(module).__name__} has no trainable parameters to optimise")
    references = {
        "muon": lambda copies: torch.optim.Muon(copies, lr=RATE, momentum=0.95, weight_decay=0.0),
        "adam": lambda copies: torch.optim.NAdam(copies, lr=RATE, betas=(0.9, 0.95)),
    }
    tables = {}
    for group in groups:
        kind, parameters = group["kind"], group["params"]
        ours = MuonAdam([{"params": _copies(parameters), "kind": kind}], lr=RATE, ns_dtype=ns_dtype)
        table = _race(ours.step, references[kind](_copies(parameters)).step, repeats)
        tables[kind] = {"count": len(parameters), "elements": sum(p.numel() for p in parameters), **table}
    optimizer = MuonAdam(
        [{**group, "params": _copies(group["params"])} for group in groups], lr=RATE, ns_dtype=ns_dtype
    )
    optimizer.step()
    tables["step"] = {"ours_ms": statistics.median(milliseconds(optimizer.step) for _ in range(repeats))}
    return tables


def _copies(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Clone the parameters and give each a gradient that depends only on its index."""
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    for index, copy in enumerate(copies):
        gradient = rng.normal("benchmark", "gradient", index, count=copy.numel())
        copy.grad = gradient.to(copy).reshape(copy.shape)
    return copies


def _race(ours: Callable, theirs: Callable, repeats: int) -> dict[str, float]:
    times = time_interleaved({"ours": ours, "torch": theirs}, repeats)
    return compare(times["ours"], times["torch"], "torch")
