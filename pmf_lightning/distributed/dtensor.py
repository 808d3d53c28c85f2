"""Tensors that are spread over devices (DTensor): this device's part, the whole, and back. Plain tensors pass as is."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this device's part, which shares its memory; changes of it are changes of ``tensor``. Needs no_grad."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor. All devices must ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole ``tensor``, which every device has, on the device of ``like``, cut as ``like`` is."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor.to(like.device)
    home = tensor.to(like.device)
    return distribute_tensor(home, like.device_mesh, like.placements, src_data_rank=None)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together, of all devices' parts where they are spread."""
    return full_tensor(get_total_norm(tensors))


def fsdp_units(network: nn.Module) -> Iterable[FSDPModule]:
    """Yield the modules of ``network`` whose weights are gathered together."""
    return (module for module in network.modules() if isinstance(module, FSDPModule))


def reshard(network: nn.Module) -> None:
    """Drop the whole weights that a forward pass left behind, since the parts have changed. No communication."""
    for part in fsdp_units(network):
        part.reshard()


def unshard(network: nn.Module) -> None:
    """Gather all weights, so that forward passes need no other device until ``reshard``. All devices must ask."""
    for part in fsdp_units(network):
        part.unshard()


@torch.no_grad()
def to_cpu(tensor: Tensor, keep: bool) -> Tensor | None:
    """Return the whole tensor on the CPU where ``keep``, None elsewhere. All devices must ask."""
    full = full_tensor(tensor.detach())
    return full.cpu() if keep else None


@torch.no_grad()
def differences(tensors: Sequence[Tensor]) -> Tensor:
    """Return how far apart the devices are in each of their ``tensors``, by its norm and the sum of its numbers.

    In units of the norm of all tensors together. All devices must ask.
    """
    if not tensors:
        return torch.empty(0)
    norms = torch.stack(torch._foreach_norm([tensor.double() for tensor in tensors]))
    sums = torch.stack([tensor.double().sum() / max(1, tensor.numel()) ** 0.5 for tensor in tensors])
    prints = torch.stack((norms, sums))
    everyone = [torch.empty_like(prints) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, prints)
    seen = torch.stack(everyone).nan_to_num()  # not finite everywhere is the business of others
    scale = seen[:, 0].square().sum(1).sqrt().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return ((seen.amax(0) - seen.amin(0)) / scale).amax(0)
