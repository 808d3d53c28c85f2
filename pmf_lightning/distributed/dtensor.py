"""Convert between DTensors, their local shards and full tensors. Plain tensors are returned unchanged."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def is_dtensor(value: object) -> bool:
    """Whether ``value`` is a DTensor.

    Importing the module of DTensors takes half as long as PyTorch itself. Before it is imported, no DTensor exists.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this device's shard, which shares memory with ``tensor``. Must be called under no_grad."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor. A collective: all devices must call it, in the same order."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full ``tensor``, which every device has, like ``like`` and on its device."""
    if not is_dtensor(like) or is_dtensor(tensor):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    home = tensor.to(like.device)
    return distribute_tensor(home, like.device_mesh, like.placements, src_data_rank=None)


def from_shard(shard: Tensor, like: Tensor) -> Tensor:
    """Return the tensor sharded like ``like``, and on its device, whose part on this device is ``shard``."""
    from torch.distributed.tensor import DTensor

    layout = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(shard.to(like.device), like.device_mesh, like.placements, **layout)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together, over all shards."""
    return full_tensor(get_total_norm(tensors))


def fsdp_units(network: nn.Module) -> Iterable[Any]:
    """Yield the FSDPModules of ``network``; the weights of each are gathered together."""
    from torch.distributed.fsdp import FSDPModule

    return (module for module in network.modules() if isinstance(module, FSDPModule))


def reshard(network: nn.Module) -> None:
    """Free the full weights of the last forward pass, which are outdated once shards change. No communication."""
    for part in fsdp_units(network):
        part.reshard()


def unshard(network: nn.Module) -> None:
    """Gather all weights, so that forward passes need no communication until ``reshard``. A collective."""
    for part in fsdp_units(network):
        part.unshard()


@torch.no_grad()
def to_cpu(tensor: Tensor, keep: bool) -> Tensor | None:
    """Return the full tensor on the CPU if ``keep``, otherwise None. A collective: all devices must call it."""
    full = full_tensor(tensor.detach())
    return full.cpu() if keep else None


@torch.no_grad()
def differences(tensors: Sequence[Tensor]) -> Tensor:
    """Return the largest difference between devices of each of ``tensors``, in its norm and in the sum of its values.

    The unit is the norm of all tensors together. A collective: all devices must call it.
    """
    if not tensors:
        return torch.empty(0)
    norms = torch.stack(torch._foreach_norm([tensor.double() for tensor in tensors]))
    sums = torch.stack([tensor.double().sum() / max(1, tensor.numel()) ** 0.5 for tensor in tensors])
    prints = torch.stack((norms, sums))
    everyone = [torch.empty_like(prints) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, prints)
    seen = torch.stack(everyone).nan_to_num()  # non-finite values are detected elsewhere
    scale = seen[:, 0].square().sum(1).sqrt().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return ((seen.amax(0) - seen.amin(0)) / scale).amax(0)
