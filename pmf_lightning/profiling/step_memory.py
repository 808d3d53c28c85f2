"""Memory and arithmetic of a training step, counted on the meta device without allocating memory.

What is counted: tensors in the dtype of the weights, as a step of one device makes them, gradients among them all the
time (they are there while micro-batches accumulate; with one micro-batch they grow while activations go). What is not:
perceptual networks, drifting's encoders (the pixels are its one feature here), what the allocator and kernels take
beyond the tensors, that FSDP keeps a part of everything on each device, and savings of another ``trainer.precision``.
On a CPU the count is the allocator's own, to 1 % (tests/profiling/test_info.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pmf_lightning.encoders.drifting.extractor import DriftFeatures
from pmf_lightning.objectives.base import Batch
from pmf_lightning.objectives.drifting import Drifting, DriftingBatch
from pmf_lightning.profiling.live_bytes import peak_bytes
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.rng import BatchRows

Rivals = tuple[int, int]  # real images of its class, and of any class, that each label of drifting meets


def without_perceptual(objective: Any) -> Any:
    """Return the objective without perceptual distances."""
    return replace(objective, perceptual={}) if getattr(objective, "perceptual", None) else objective


def further_arguments(objective: Any) -> dict[str, Any]:
    """Return what the objective is called with beside network, batch and draws: for drifting the pixels as feature."""
    return {"features": DriftFeatures()} if isinstance(objective, Drifting) else {}


def dummy_batch(objective: Any, images: int, rivals: Rivals = (1, 0)) -> Batch | DriftingBatch:
    """Return a batch of zeros, one pixel each, that trains on ``images`` images; drifting has one label at least."""
    if not isinstance(objective, Drifting):
        return Batch(torch.zeros(images, 1, 1, 1), torch.zeros(images, dtype=torch.long))
    labels, (positives, negatives) = max(1, images // objective.generated), rivals
    x, others = torch.zeros(labels, positives, 1, 1, 1), torch.zeros(labels, negatives, 1, 1, 1)
    return DriftingBatch(x, torch.zeros(labels, dtype=torch.long), others)


def images_of(objective: Any, batch: Batch | DriftingBatch) -> int:
    """Return how many images the network sees or makes of a batch."""
    return len(batch.y) * getattr(objective, "generated", 1)


def meta_batch(network: nn.Module, objective: Any, images: int, shard: BatchRows, rivals: Rivals) -> tuple[Any, Any]:
    """Return a batch on the meta device, as large as the network wants it, and draws to go with it.

    The scalars among the draws of flows have values, since they decide what is computed.
    """
    small = dummy_batch(objective, images, rivals)
    draws = objective.draw(small, 0, 0, shard)
    shape = (network.channels, network.resolution, network.resolution)

    def whole(pixels: torch.Tensor) -> torch.Tensor:
        return torch.empty(*pixels.shape[:-3], *shape, device="meta")

    pictures = {name: whole(value) for name, value in vars(small).items() if name != "y"}
    return replace(small, y=small.y.to("meta"), **pictures), replace(draws, noise=whole(draws.noise))


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
    shard: BatchRows,
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
    batch, draws = meta_batch(network, objective, micro_batch, shard, rivals)
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


def step_flops(network: nn.Module, objective: Any, micro_batch: int, shard: BatchRows, rivals: Rivals = (1, 0)) -> int:
    """Return the floating-point operations (2 per multiply-add) of loss and gradients of one micro-batch.

    Products of matrices, convolutions and attention are counted, forwards, backwards and along tangents, as this
    package runs them; ``network`` must be on the meta device. Perceptual networks and encoders are left out.
    """
    objective = without_perceptual(objective)
    batch, draws = meta_batch(network, objective, micro_batch, shard, rivals)
    with FlopCounterMode(display=False) as counter:
        objective(network, batch, draws, **further_arguments(objective)).total.backward()
    network.zero_grad()
    return counter.get_total_flops()
