"""Count the memory and FLOPs of a training step on the meta device, without allocating memory.

Counted: the tensors of a step on one device, in the dtype of the weights. Gradients count all the time: they exist
while micro-batches accumulate (with one micro-batch they grow while activations are freed). Not counted: perceptual
networks, Drifting's encoders (pixels are its only feature here), overheads of allocator and kernels, the sharding of
FSDP, and savings of another ``trainer.precision``. On a CPU the count agrees with the allocator's to 1 %
(tests/profiling/test_info.py).
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

Rivals = tuple[int, int]  # numbers of positives (of its class) and negatives (of any class) per label of Drifting


def without_perceptual(objective: Any) -> Any:
    """Return the objective without perceptual distances."""
    return replace(objective, perceptual={}) if getattr(objective, "perceptual", None) else objective


def further_arguments(objective: Any) -> dict[str, Any]:
    """Return the objective's arguments besides network, batch and draws: for Drifting, pixels as the feature."""
    return {"features": DriftFeatures()} if isinstance(objective, Drifting) else {}


def dummy_batch(objective: Any, images: int, rivals: Rivals = (1, 0)) -> Batch | DriftingBatch:
    """Return a batch of zeros, with one pixel per image, for ``images`` images; at least one label for Drifting."""
    if not isinstance(objective, Drifting):
        return Batch(torch.zeros(images, 1, 1, 1), torch.zeros(images, dtype=torch.long))
    labels, (positives, negatives) = max(1, images // objective.generated), rivals
    x, others = torch.zeros(labels, positives, 1, 1, 1), torch.zeros(labels, negatives, 1, 1, 1)
    return DriftingBatch(x, torch.zeros(labels, dtype=torch.long), others)


def images_of(objective: Any, batch: Batch | DriftingBatch) -> int:
    """Return the number of images of a batch that the network processes or generates."""
    return len(batch.y) * getattr(objective, "generated", 1)


def meta_batch(network: nn.Module, objective: Any, images: int, shard: BatchRows, rivals: Rivals) -> tuple[Any, Any]:
    """Return a batch on the meta device, with the network's image shape, and its draws.

    The scalars among the draws of flows have values, since these decide what is computed.
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
    """Bytes on one device: persistent tensors, and the peaks of temporary ones.

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
        """Bytes that do not depend on the micro-batch, without ``update``."""
        return self.weights + self.gradients + self.optimizer + self.averages

    @property
    def per_image(self) -> float:
        """Bytes of activations per image."""
        return self.activations / self.micro_batch

    @property
    def peak(self) -> int:
        """Peak bytes of a step."""
        return self.fixed + max(self.activations, self.update)

    def largest_micro_batch(self, available: Number) -> int:
        """Return the largest micro-batch that fits into ``available`` bytes, 0 if the weights do not fit."""
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
        make_optimizer: builds the optimiser of the network's weights.
        averages: number of running averages of the weights, in float32 or wider.
        micro_batch: images per device and pass.
        shard: the rows of the global batch of these images, which decide how many of them have t != r.
        rivals: for Drifting, positives and negatives per label.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    objective = without_perceptual(objective)  # perceptual terms would draw crops
    batch, draws = meta_batch(network, objective, micro_batch, shard, rivals)
    more = further_arguments(objective)
    activations = peak_bytes(lambda: objective(network, batch, draws, **more).total.backward())
    optimizer = make_optimizer()
    optimizer.step()  # the first step creates the moments
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

    Counts matrix products, convolutions and attention in forward pass, backward pass and tangents, as this package runs
    them. ``network`` must be on the meta device. Perceptual networks and encoders are left out.
    """
    objective = without_perceptual(objective)
    batch, draws = meta_batch(network, objective, micro_batch, shard, rivals)
    with FlopCounterMode(display=False) as counter:
        objective(network, batch, draws, **further_arguments(objective)).total.backward()
    network.zero_grad()
    return counter.get_total_flops()
