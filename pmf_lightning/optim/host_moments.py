"""Optimisers whose moments lie in host memory beside a GPU and come to the weights in parts (moments.device=cpu)."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pmf_lightning.distributed.dtensor import from_shard, is_dtensor, local_tensor
from pmf_lightning.optim.distributed_muon import chunks
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.host_memory import empty_on_host

PART_ELEMENTS = 2**26  # elements of the weights whose moments are beside them at once, without effect on results


class HostMoments(Optimizer):
    """Base class of optimisers that can keep their moments on another device than the weights.

    Moments are all tensors in the state of a parameter but "step". In the state they are plain tensors on
    ``moments_device``; of a DTensor, the shard of this rank. Inside ``beside_weights`` they are copies on the device of
    the weights. On a CUDA device no copy waits: all are on the stream of the step, and the memory is page-locked.

    Attributes:
        moments_device: None, the device of the weights, or the type of another device: "cpu".
        part_elements: most elements of weights that are updated at once; None, the default: by the device.
    """

    def __init__(self, *arguments: Any, moments_device: str | None = None, **settings: Any):
        self.moments_device = moments_device
        self.part_elements: int | None = None
        self._buffers: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)
        super().__init__(*arguments, **settings)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimiser, after the last step's copies to host memory are complete."""
        if self.moments_device is not None:
            for device in {p.device for group in self.param_groups for p in group["params"] if p.is_cuda}:
                torch.cuda.synchronize(device)
        return super().state_dict()

    @torch.no_grad()
    def keep_moments(self) -> None:
        """Move all moments to where they are kept: loading a state leaves them on the device of the weights."""
        for parameter in self.state:
            self._keep(parameter)

    def parts(self, parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
        """Yield parts of ``parameters`` whose moments come to the weights together; all, if they are kept there."""
        if not any(map(self._away, parameters)):
            yield parameters
            return
        for part in chunks([tuple(p.shape) for p in parameters], self.part_elements or PART_ELEMENTS):
            yield parameters[part]

    @contextmanager
    def beside_weights(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Context manager inside which the moments of ``parameters`` are on the device of the weights."""
        away = [parameter for parameter in parameters if self._away(parameter)]
        for parameter in away:
            state = self.state[parameter]
            state.update({name: _copied_to(parameter, value) for name, value in _moments(state).items()})
        try:
            yield
        finally:
            for parameter in away:
                self._keep(parameter)

    def _away(self, parameter: nn.Parameter) -> bool:
        """Return whether the moments of ``parameter`` are kept elsewhere."""
        return self.moments_device not in (None, parameter.device.type)

    def _keep(self, parameter: nn.Parameter) -> None:
        """Copy the moments of ``parameter`` to where they are kept, unless they are there."""
        if not self._away(parameter):
            return
        state, buffers = self.state[parameter], self._buffers[parameter]
        for name, value in _moments(state).items():
            if value is not buffers.get(name):
                shard = local_tensor(value)
                if name not in buffers:
                    buffers[name] = _empty(shard)
                state[name] = buffers[name].copy_(shard, non_blocking=shard.is_cuda)


class _InParts(HostMoments):
    """An optimiser of torch that updates each element of a weight by itself: a step takes the weights in parts."""

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Take one step and return the loss of ``closure``, if one is given."""
        loss = loss_of(closure)
        groups = self.param_groups
        try:
            for group in groups:
                for part in self.parts([p for p in group["params"] if p.grad is not None]):
                    self.param_groups = [{**group, "params": part}]
                    with self.beside_weights(part):
                        super().step()
        finally:
            self.param_groups = groups
        return loss


class Adam(_InParts, torch.optim.Adam):
    """Adam of torch with the moments on ``moments_device``."""


class AdamW(_InParts, torch.optim.AdamW):
    """AdamW of torch with the moments on ``moments_device``."""


_IN_PARTS = {torch.optim.Adam: Adam, torch.optim.AdamW: AdamW}


def with_moments_on(device: str, make: Callable[[list[dict]], Optimizer]) -> Callable[[list[dict]], Optimizer]:
    """Return ``make``, a partial of an optimiser's class, with the moments on ``device``; UserError for other classes.

    The updates are those of ``make``, to the bit.
    """
    named = make.func if isinstance(make, partial) else make
    kind = _IN_PARTS.get(named, named)
    if not (isinstance(make, partial) and isinstance(kind, type) and issubclass(kind, HostMoments)):
        raise UserError(
            f"moments.device={device}: {getattr(named, '__name__', named)} keeps its moments beside the weights; take "
            "optimizer=muon, adam or adamw, or leave moments.device out"
        )
    return partial(kind, *make.args, **make.keywords, moments_device=device)


def loss_of(closure: Callable | None) -> Any:
    """Return the loss that the ``closure`` of a step computes with its gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _moments(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and name != "step"}


def _empty(like: Tensor) -> Tensor:
    """Return host memory; on the meta device, where memory is counted (info), a tensor without memory."""
    return torch.empty_like(like) if like.is_meta else empty_on_host(like)


def _copied_to(parameter: nn.Parameter, moment: Tensor) -> Tensor:
    """Return a copy of ``moment`` on the device of ``parameter``, and sharded like it."""
    copied = local_tensor(moment).to(parameter.device, non_blocking=parameter.is_cuda, copy=True)
    return from_shard(copied, parameter) if is_dtensor(parameter) else copied
