"""How much memory a training step takes on each device, found by running one on the meta device, without memory.

What is counted: tensors in the dtype of the weights, as a step of one device makes them, gradients among them all the
time (they are there while micro-batches accumulate; with one micro-batch they grow while activations go). What is not:
perceptual networks, drifting's encoders (the pixels are its one feature here), what the allocator and kernels take
beyond the tensors, that FSDP keeps a part of everything on each device, and savings of another ``trainer.precision``.
On a CPU the count is the allocator's own, to 1 % (tests/test_info.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmf_lightning.costs.blank_steps import Rivals, further_arguments, without_perceptual, without_values
from pmf_lightning.costs.live_bytes import peak_bytes
from pmf_lightning.draws import Shard
from pmf_lightning.precision import Number


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device: what stays between steps, and the peaks of what comes and goes.

    ``activations`` is the peak of forward and backward pass of a micro-batch, ``update`` that of the optimiser step.
    """

    micro_batch: int
    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    update: int

    @property
    def fixed(self) -> int:
        """What does not depend on the micro-batch, without ``update``."""
        return self.weights + self.gradients + self.optimizer + self.averages

    @property
    def per_image(self) -> float:
        """Activations of one image."""
        return self.activations / self.micro_batch

    @property
    def peak(self) -> int:
        """The largest sum of all that is there at once."""
        return self.fixed + max(self.activations, self.update)

    def largest_micro_batch(self, available: Number) -> int:
        """Return how many images fit into ``available`` bytes at once, 0 where not even the weights do."""
        if self.fixed + self.update > available:
            return 0
        return int((available - self.fixed) // self.per_image)


def step_memory(
    network: nn.Module,
    objective: Any,
    make_optimizer: Callable[[], torch.optim.Optimizer],
    *,
    averages: int,
    micro_batch: int,
    shard: Shard,
    rivals: Rivals = (1, 0),
) -> StepMemory:
    """Count the memory of a training step of ``network``, which must be on the meta device.

    Args:
        make_optimizer: makes the optimiser of the network's weights.
        averages: how many running averages of the weights are kept, in float32 at least.
        micro_batch: images per device and pass.
        shard: the rows of the global batch that these images are, which decides how many of them have t != r.
        rivals: for drifting, the real images that each label meets.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    objective = without_perceptual(objective)  # which would draw crops
    batch, draws = without_values(network, objective, micro_batch, shard, rivals)
    more = further_arguments(objective)
    activations = peak_bytes(lambda: objective(network, batch, draws, **more).total.backward())
    optimizer = make_optimizer()
    optimizer.step()  # the first step makes the moments
    update = peak_bytes(optimizer.step)
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return StepMemory(
        micro_batch=micro_batch,
        weights=_bytes(network.parameters()),
        gradients=_bytes(weights),
        optimizer=_bytes(moments),
        averages=averages * sum(weight.numel() * max(4, weight.element_size()) for weight in weights),
        activations=activations,
        update=update,
    )


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
