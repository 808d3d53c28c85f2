"""Choose how many images a device processes at once (micro_batch=auto), from the memory that a step needs."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.data.datamodule import StepData
from pmf_lightning.distributed.strategies import FullySharded
from pmf_lightning.objectives.base import Batch
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.free_space import free_memory
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.rng import BatchRows

SPARE = 0.05  # of the free memory: what the allocator cannot use


@dataclass(frozen=True)
class CountedMemory:
    """Bytes of a training step on one device that are not allocated before it, counted in float32 (info).

    Args:
        gradients, optimizer: gradients, and moments of the optimiser.
        update: peak of the optimiser step.
        per_image: activations of forward and backward pass, per image at once.
    """

    gradients: int
    optimizer: int
    update: int
    per_image: float

    def of(self, micro_batch: int) -> Number:
        """Return the bytes with ``micro_batch`` images at once."""
        return self.gradients + self.optimizer + max(self.update, micro_batch * self.per_image)


class MicroBatch(Callback):
    """Sets the micro-batch before the first step: the largest divisor of a device's images whose memory is free.

    On a GPU one trial step, without update, then shows whether it fits; a smaller divisor, at most half, follows if it
    does not. All devices take the smallest choice. On a CPU, and with sharded weights, only the count decides.

    Args:
        data: the datamodule, whose micro-batch is set.
        memory: what a step needs.
    """

    def __init__(self, data: StepData, memory: CountedMemory):
        self.data, self.memory = data, memory

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose; raises UserError, before any step, if not even one image at once fits."""
        share = self.data.batch // trainer.world_size
        on_gpu = trainer.strategy.root_device.type == "cuda"
        free = free_bytes(trainer)
        size = self._agreed(trainer, self._by_count(share, free, trainer))
        tries = on_gpu and not isinstance(trainer.strategy, FullySharded)
        if not size and not tries:
            raise UserError(self._too_large(free, trainer))
        size, how = max(1, size), "counted"
        while tries and not self._agreed(trainer, int(self._fits(trainer, pl_module, size))):
            if size == 1:
                raise UserError(f"micro_batch=auto: a trial step of one image is out of memory; {REMEDY}")
            size = largest_divisor(share, size // 2)
        if tries:
            how = "a trial step fitted; counted in float32"
        self.data.micro_batch = size
        trainer.accumulate_grad_batches = self.data.accumulation(trainer.world_size)
        rank_zero_only(print)(
            f"micro_batch=auto: {size} of the {share} images of a device at once ({how}: "
            f"{self._needed(size, trainer) / 1e9:.3g} GB of {free / 1e9:.3g} GB free)",
            flush=True,
        )

    def _by_count(self, share: int, free: int, trainer: Trainer) -> int:
        """Return the largest divisor of ``share`` that fits by the count, 0 if one image does not."""
        divisors = [size for size in range(share, 0, -1) if share % size == 0]
        return next((size for size in divisors if self._needed(size, trainer) <= (1 - SPARE) * free), 0)

    def _needed(self, size: int, trainer: Trainer) -> Number:
        if not isinstance(trainer.strategy, FullySharded):
            return self.memory.of(size)
        spread = self.memory.gradients + self.memory.optimizer
        gathered = self.memory.gradients  # as large as the full weights
        return self.memory.of(size) - spread + spread / trainer.world_size + gathered

    def _agreed(self, trainer: Trainer, value: int) -> int:
        """Return the smallest value of all devices."""
        if trainer.world_size == 1:
            return value
        tensor = torch.tensor(-value, device=trainer.strategy.root_device)
        return -int(trainer.strategy.reduce(tensor, reduce_op="max"))

    def _fits(self, trainer: Trainer, module: LightningModule, size: int) -> bool:
        """Return whether loss and gradients of ``size`` images fit beside gradients and moments."""
        try:
            self._trial(trainer, module, size)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def _trial(self, trainer: Trainer, module: LightningModule, size: int) -> None:
        """Compute loss and gradients of black images; no gradient is stored, so no exchange of devices begins."""
        device, network = trainer.strategy.root_device, module.network
        kept = torch.empty(self.memory.gradients + self.memory.optimizer, dtype=torch.uint8, device=device)
        module.on_fit_start()  # moves the encoders
        shape = (size, network.channels, network.resolution, network.resolution)
        batch = Batch(torch.zeros(shape, device=device), torch.zeros(size, dtype=torch.long, device=device))
        shares = self.data.batch // size
        draws = module.objective.draw(batch, module.seed, 0, BatchRows(shares - 1, shares))  # the costliest rows
        plugin = trainer.precision_plugin
        with plugin.train_step_context() if plugin is not None else nullcontext():
            losses = module.objective(module.compiled_network, batch, draws, module.encoders)
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        torch.autograd.grad(losses.total, weights, allow_unused=True)
        del kept

    def _too_large(self, free: int, trainer: Trainer) -> str:
        return (
            f"micro_batch=auto: one image at once needs about {self._needed(1, trainer) / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB are free; {REMEDY}"
        )


REMEDY = "use a smaller model, activation_checkpointing=true, or several devices with trainer=fsdp"


def free_bytes(trainer: Trainer) -> int:
    """Return the free bytes of this device; on a CPU this process's part of the machine's free memory."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() // max(1, trainer.num_devices)


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of ``number`` that is at most ``most``."""
    return next(size for size in range(most, 0, -1) if number % size == 0)
