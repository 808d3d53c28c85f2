"""Count the memory and FLOPs of a training step on the meta device, without allocating memory.

Counted: the tensors of a step on one device, in the dtype of the weights. Gradients count all the time: they exist
while micro-batches accumulate (with one micro-batch they grow while activations are freed). Not counted: the encoders
of the loss (ObjectiveBase.counted), overheads of allocator and kernels, the sharding of FSDP, and savings of another
``trainer.precision``. On a CPU the count agrees with the allocator's to 1 % (tests/profiling/test_info.py), and that of
whole runs to 15 % (test_step_memory.py; scripts/measure_memory.py for large networks, where ``process`` does).
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pmf_lightning.objectives.base import AnyBatch, Batch, LabelBatch, Objective, QueueBatch
from pmf_lightning.optim.distributed_muon import chunks
from pmf_lightning.optim.host_moments import HostMoments
from pmf_lightning.optim.muon_adam import CPU_ELEMENTS, STACK_ELEMENTS, MuonAdam
from pmf_lightning.profiling.live_bytes import peak_bytes
from pmf_lightning.profiling.meta_results import MetaResults
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.rng import BatchRows

RealCounts = tuple[
    int, int
]  # numbers of positives (of its class) and negatives (of any class) per label of class queues


def real_counts_of(cfg: DictConfig, objective: Objective) -> RealCounts:
    """Return the positives and negatives per label of a configuration; (1, 0) without class queues."""
    return (cfg.queues.positives, cfg.queues.negatives) if objective.data == "class_queues" else (1, 0)


def dummy_batch(objective: Objective, images: int, real_counts: RealCounts = (1, 0)) -> AnyBatch:
    """Return a batch of zeros, with one pixel per image, for ``images`` images of the network; at least one row."""
    rows = max(1, images // objective.images_per_label)
    labels = torch.zeros(rows, dtype=torch.long)
    if objective.data == "labels":
        return LabelBatch(labels, (1, 1, 1))
    if objective.data == "images":
        return Batch(torch.zeros(rows, 1, 1, 1), labels)
    positives, negatives = real_counts
    return QueueBatch(torch.zeros(rows, positives, 1, 1, 1), labels, torch.zeros(rows, negatives, 1, 1, 1))


def images_of(objective: Objective, batch: AnyBatch) -> int:
    """Return the number of images of a batch that the network processes or generates."""
    return len(batch.y) * objective.images_per_label


def meta_batch(
    network: nn.Module, objective: Objective, images: int, shard: BatchRows, real_counts: RealCounts
) -> tuple:
    """Return a batch on the meta device, with the network's image shape, and its draws.

    The images among the draws (such as the noise) are on the meta device too. The scalars have values, since these
    decide what is computed.
    """
    small = dummy_batch(objective, images, real_counts)
    draws = objective.draw(small, 0, 0, shard)
    shape = (network.channels, network.resolution, network.resolution)

    def enlarged(of: Any) -> dict[str, Tensor]:
        pictures = {name: value for name, value in vars(of).items() if isinstance(value, Tensor) and value.dim() > 3}
        return {name: torch.empty(*value.shape[:-3], *shape, device="meta") for name, value in pictures.items()}

    more = {"shape": shape} if objective.data == "labels" else {}
    return replace(small, y=small.y.to("meta"), **enlarged(small), **more), replace(draws, **enlarged(draws))


def on_meta(network: nn.Module) -> nn.Module:
    """Return a copy of a network with its weights and buffers on the meta device, so that it takes no memory."""
    tensors = [*network.parameters(), *network.buffers()]
    empty = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for weight in network.parameters():
        empty[id(weight)] = nn.Parameter(empty[id(weight)], requires_grad=weight.requires_grad)
    return copy.deepcopy(network, empty)


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device: persistent tensors, and the peaks of temporary ones.

    ``activations`` is the peak of forward and backward pass of a micro-batch, ``update`` that of the optimiser step,
    ``update_on_cpu`` that of the step on a CPU, where Muon takes matrices in smaller parts,
    ``encoders`` the weights of a battery, as far as they are known; ``queues`` those of real images in host memory.
    ``averages_on_host`` says whether averages are kept in host memory beside a GPU (ema.device=cpu),
    ``moments_on_host`` whether the moments of the optimiser are (moments.device=cpu); ``update`` then has those of a
    part.
    """

    micro_batch: int
    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    update: int
    update_on_cpu: int
    encoders: int = 0
    queues: int = 0
    averages_on_host: bool = False
    moments_on_host: bool = False

    @property
    def fixed(self) -> int:
        """Bytes on the device that do not depend on the micro-batch, without ``update``."""
        return self._all - self.averages * self.averages_on_host - self.optimizer * self.moments_on_host

    @property
    def host(self) -> int:
        """Bytes in host memory beside a GPU: moments, averages, and the buffers that weights are copied to."""
        averages = (self.averages + self.gradients) * self.averages_on_host
        return averages + self.optimizer * self.moments_on_host

    @property
    def on_host(self) -> str:
        """What is in host memory beside a GPU, in words."""
        held = ["moments"] * self.moments_on_host + ["averages", "copied weights"] * self.averages_on_host
        return _listed(held)

    @property
    def _all(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.encoders

    @property
    def per_image(self) -> float:
        """Bytes of activations per image."""
        return self.activations / self.micro_batch

    @property
    def peak(self) -> int:
        """Peak bytes of the tensors of a step."""
        return self.fixed + max(self.activations, self.update)

    @property
    def process(self) -> int:
        """Peak bytes by which training enlarges a process on a CPU.

        The C library keeps most of what the passes have freed, so activations and the optimiser's tensors add up.
        """
        return self._all + self.activations + self.update_on_cpu + self.queues

    def line(self) -> str:
        """Return the peak of a step and its parts in one line."""
        images = f"{self.micro_batch} image{'s' * (self.micro_batch > 1)} at once x {self.per_image / 1e9:.3g} GB"
        there = ["weights", "gradients"]
        there += ["moments"] * (not self.moments_on_host) + ["averages"] * (not self.averages_on_host)
        host = f"; beside a GPU, {self.host / 1e9:.3g} GB of {self.on_host} in host memory" if self.on_host else ""
        return (
            f"memory of a device: {self.peak / 1e9:.3g} GB = {self.fixed / 1e9:.3g} GB of {_listed(there)} + {images} "
            f"(counted in float32, without what the encoders of the loss compute){host}"
        )

    def largest_micro_batch(self, available: Number) -> int:
        """Return the largest micro-batch that fits into ``available`` bytes, 0 if the weights do not fit."""
        if self.fixed + self.update > available:
            return 0
        return int((available - self.fixed) // self.per_image)


def _listed(words: Sequence[str]) -> str:
    """Join words by commas and "and"."""
    return " and ".join([part for part in (", ".join(words[:-1]), *words[-1:]) if part])


def step_memory(
    network: nn.Module,
    objective: Objective,
    make_optimizer: Callable[[], torch.optim.Optimizer],
    *,
    averages: int,
    micro_batch: int,
    shard: BatchRows,
    real_counts: RealCounts = (1, 0),
) -> StepMemory:
    """Count the memory of a training step of ``network``, which must be on the meta device.

    Args:
        make_optimizer: builds the optimiser of the network's weights.
        averages: number of running averages of the weights, in float32 or wider.
        micro_batch: images per device and pass.
        shard: the rows of the global batch of these images, which decide how many of them have t != r.
        real_counts: positives and negatives per label, for class queues.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    objective, encoders = objective.counted()
    batch, draws = meta_batch(network, objective, micro_batch, shard, real_counts)
    activations = peak_bytes(lambda: objective(network, batch, draws, encoders).total.backward())
    moments, update, update_on_cpu = optimizer_memory(make_optimizer(), weights)
    return StepMemory(
        micro_batch=micro_batch,
        weights=_bytes(network.parameters()),
        gradients=_bytes(weights),
        optimizer=moments,
        averages=averages * sum(weight.numel() * max(4, weight.element_size()) for weight in weights),
        activations=activations,
        update=update,
        update_on_cpu=update_on_cpu,
    )


def optimizer_memory(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> tuple[int, int, int]:
    """Return the bytes of the moments, and the peaks of a step and of a step on a CPU.

    ``weights`` must have gradients on the meta device; some of these are dropped.
    """
    like = _skip_repeated(optimizer, STACK_ELEMENTS)
    optimizer.step()  # the first step creates the moments
    states = [optimizer.state.get(like.get(weight, weight), {}) for weight in weights]
    moments = _bytes(value for state in states for value in state.values() if isinstance(value, Tensor))
    update = update_on_cpu = peak_bytes(optimizer.step)
    if isinstance(optimizer, HostMoments):
        _skip_repeated(optimizer, CPU_ELEMENTS)
        optimizer.part_elements, optimizer.moments_device = CPU_ELEMENTS, None
        update_on_cpu = peak_bytes(optimizer.step)
    return moments, update, update_on_cpu


def _skip_repeated(optimizer: torch.optim.Optimizer, part_elements: int) -> dict[nn.Parameter, nn.Parameter]:
    """Drop the gradients of weights whose update repeats that of others; return these weights with one of the others.

    Muon takes the matrices of a shape in parts, one after the other. The first part takes the most memory.
    """
    like: dict[nn.Parameter, nn.Parameter] = {}
    for group in optimizer.param_groups if isinstance(optimizer, MuonAdam) else ():
        alike: dict[Hashable, list[nn.Parameter]] = defaultdict(list)
        for weight in group["params"] if group["kind"] == "muon" else ():
            alike[weight.shape, weight.dtype].append(weight)
        for (shape, _), weights in alike.items():
            first = next(chunks([tuple(shape)] * len(weights), part_elements))
            like |= dict.fromkeys(weights[first.stop :], weights[0])
    for weight in like:
        weight.grad = None
    return like


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step_flops(
    network: nn.Module, objective: Objective, micro_batch: int, shard: BatchRows, real_counts: RealCounts = (1, 0)
) -> int:
    """Return the floating-point operations (2 per multiply-add) of loss and gradients of one micro-batch.

    Counts matrix products, convolutions and attention in forward pass, backward pass and tangents, as this package runs
    them. ``network`` must be on the meta device. Perceptual networks and encoders are left out.
    """
    objective, encoders = objective.counted()
    batch, draws = meta_batch(network, objective, micro_batch, shard, real_counts)
    with MetaResults(), FlopCounterMode(display=False) as counter:
        objective(network, batch, draws, encoders).total.backward()
    network.zero_grad()
    return counter.get_total_flops()
