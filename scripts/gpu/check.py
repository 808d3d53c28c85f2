"""Compare losses, gradients and tangents on an accelerator with float64 on the CPU: check.py gpu check.json"""

import copy
import json
import sys
import warnings
from dataclasses import replace

import torch

from pmf_lightning import Batch, build, compose
from pmf_lightning.objectives.jvp.compiled import CompiledNetwork
from pmf_lightning.profiling.benchmarks.step import casting
from pmf_lightning.utils import rng

NETWORK = [
    *("backbone.width=128", "backbone.num_heads=2", "backbone.mlp_dim=344", "backbone.depth=2"),
    *("backbone.heads={u: 2, v: 2}", "backbone.bottleneck=32", "perceptual=none", "data.resolution=64"),
]
IMAGES = 16


def main(device: str, out: str) -> None:
    """Compare four settings and write the relative differences."""
    where = torch.device("cuda" if device == "gpu" else device)
    torch.set_float32_matmul_precision("highest")
    module = build(compose(["model=pmf_b16", "data=imagenet256", *NETWORK]))
    with torch.no_grad():
        for name, weight in module.network.named_parameters():
            if weight.ndim == 1 or not weight.any():  # layer scales start at zero, which makes every block an identity
                weight += 0.05 * rng.normal("check", name, count=weight.numel()).view_as(weight).to(weight)
    x = rng.uniform("check", "x", count=IMAGES * 3 * 64 * 64).view(IMAGES, 3, 64, 64) * 2 - 1
    batch = Batch(x, torch.arange(IMAGES))
    drawn = module.objective.draw(Batch(x.float(), batch.y), 0, 0)  # float32 times, so that all runs have the same
    exact = measure(module, copy.deepcopy(module.network).double(), batch, drawn, torch.device("cpu"), "64", False)
    waits = syncs(module, copy.deepcopy(module.network), batch, drawn, where) if where.type == "cuda" else None
    print("syncs in a step", waits)
    table = {}
    for precision, compiled in (("32-true", False), ("bf16-mixed", False), ("32-true", True), ("bf16-mixed", True)):
        found = measure(module, copy.deepcopy(module.network), batch, drawn, where, precision, compiled)
        name = precision + (" compiled" if compiled else "")
        table[name] = {part: relative(found[part], exact[part]) for part in exact}
        print(name, {part: f"{value:.1e}" for part, value in table[name].items()})
        with open(out, "w") as file:  # after each setting: the compiler may be missing
            found = {"device": str(where), "syncs_in_a_step": waits, "relative_differences_to_float64": table}
            json.dump(found, file, indent=1)


def measure(module, network, batch, drawn, device, precision, compiled):
    """Return batch means of the losses, the field du/dt and all gradients."""
    wide = next(network.parameters()).dtype
    network = network.to(device)
    given = {name: value for name, value in vars(drawn).items() if value is not None}
    given = {name: value.to(wide) if value.is_floating_point() else value for name, value in given.items()}
    moved = type(drawn)(**{**given, "noise": given["noise"].to(device)})
    batch = Batch(batch.x.to(device, wide), batch.y.to(device))
    passes = CompiledNetwork(network) if compiled else network
    with casting(device, precision):
        losses = module.objective(passes, batch, moved, keep_fields=True)
    losses.total.backward()
    gradients = torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
    means = {name: value.mean()[None] for name, value in losses.per_sample.items()}
    return {**means, "du_dt": losses.fields["du_dt"].detach(), "gradients": gradients}


def syncs(module, network, batch, drawn, device):
    """Return how often the host waits for the device in the loss and gradients of a step."""
    network = network.to(device)
    batch, drawn = Batch(batch.x.to(device).float(), batch.y.to(device)), replace(drawn, noise=drawn.noise.to(device))
    module.objective(network, batch, drawn).total.backward()  # the first pass allocates memory
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            module.objective(network, batch, drawn).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in seen)


def relative(value, reference):
    """Return the relative L2 distance."""
    value, reference = value.double().cpu(), reference.double().cpu()
    return ((value - reference).norm() / reference.norm()).item()


if __name__ == "__main__":
    main(*sys.argv[1:])
