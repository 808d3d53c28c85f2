"""Training strategies for several devices: DDP (each has all weights) and FSDP2 (each has a shard)."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pmf_lightning.distributed.dtensor import differences, from_shard, local_tensor, spread_like, to_cpu
from pmf_lightning.objectives.jvp.fsdp_hooks import open_duals
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate

OLDEST_FSDP = (2, 13)


def trainer_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer from the section ``trainer``, with the strategy instantiated."""
    options = dict(options)
    if isinstance(options["strategy"], Mapping):
        options["strategy"] = instantiate(options["strategy"], _convert_="all")
    return options


def ddp(**settings: Any) -> DDPStrategy:
    """Return Lightning's DDP strategy; ``settings`` are passed to torch's DistributedDataParallel.

    The derivative of a MeanFlow step runs inside DDP's forward, so gradients are averaged.
    """
    return DDPStrategy(**settings)


def fsdp(gather_dtype: str | None) -> "FullySharded":
    """Return the FSDP2 strategy; ``gather_dtype`` is the dtype of gathered matrices, null that of the weights.

    Raises UserError if torch is too old or the dtype is unknown.
    """
    return FullySharded(gather_dtype)


def refuse_old_torch(version: str) -> None:
    """Raise UserError if this version of torch cannot take forward-mode derivatives through FSDP2."""
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < OLDEST_FSDP:
        raise UserError(
            f"trainer=fsdp: torch {version} cannot take forward-mode derivatives through FSDP2 (pytorch issue 182641); "
            f"install torch {'.'.join(map(str, OLDEST_FSDP))} or newer, or take trainer=ddp"
        )


def takes_part(trainer: Trainer) -> bool:
    """Whether this device takes part in single-device inference: rank 0, or all ranks if weights are sharded."""
    return trainer.is_global_zero or isinstance(trainer.strategy, FullySharded)


class FullySharded(DDPStrategy):
    """FSDP2 with one gather per step: weights, gradients, moments and averages are sharded over all devices.

    The full weights are gathered at the first forward pass of a step (guidance, if there is one) and freed after their
    backward pass, since the derivative needs them. FSDP's hooks run around a block; compiled code and recomputation run
    inside it. Checkpoints hold the full state in single-device format, so a run resumes with any strategy and any
    number of devices. After training every device gets the full network, and the method ``gather`` of callbacks that
    have one is called.
    """

    def __init__(self, gather_dtype: str | None):
        refuse_old_torch(torch.__version__)
        if gather_dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"trainer.strategy.gather_dtype={gather_dtype}: use bfloat16, float32 or null")
        super().__init__()
        self._policy = _policy(gather_dtype and getattr(torch, gather_dtype))
        self._plain: nn.Module | None = None

    def setup(self, trainer: Trainer) -> None:
        """Shard the network, whose initial weights are set by now, and build the optimizer over the shards."""
        self.accelerator.setup(trainer)
        module = self.lightning_module
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()  # first: NCCL cannot compare CPU tensors
        refuse_different_starts(module.network)
        self._plain = _without_weights(module.network)
        shard(module.network, init_device_mesh(self.root_device.type, (self.world_size,)), self._policy)
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Return the full weights on rank 0, {} elsewhere. A collective: all ranks must call it."""
        return _whole_state(self.lightning_module.state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the full state of the optimizer on rank 0, {} elsewhere. A collective: all ranks must call it."""
        state = super().optimizer_state(optimizer)
        zero, weights = self.is_global_zero, [weight for group in optimizer.param_groups for weight in group["params"]]
        whole_state = {
            number: _whole_state(_sharded_state(moments, weights[number]), zero)
            for number, moments in state["state"].items()
        }
        return {**state, "state": whole_state} if zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's shard of the optimizer state."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {number: _spread_state(kept, weights[number]) for number, kept in stored["state"].items()}
            optimizer.load_state_dict({**stored, "state": state})

    def teardown(self) -> None:
        """Restore the full network on every device, unless training was interrupted."""
        module = self.lightning_module
        trainer = module and module._trainer
        if self._plain is not None and trainer.state.status != TrainerStatus.INTERRUPTED:
            for callback in trainer.callbacks:
                if hasattr(callback, "gather"):
                    callback.gather()
            weights = _whole_state(module.network.state_dict(), True)
            self._plain.load_state_dict(weights, assign=True)
            module.set_network(self._plain)
            self._plain = None
        super().teardown()


def refuse_different_starts(network: nn.Module) -> None:
    """Raise UserError unless all devices have the same weights, of which each will hold a shard."""
    apart = differences([weight.detach() for weight in network.parameters()])
    if apart.max() > 0:
        name = [name for name, _ in network.named_parameters()][int(apart.argmax())]
        raise UserError(
            f"the devices start with different weights, most of all in {name}: take the same seed, the same ckpt and "
            "the same code on all machines"
        )


def shard(network: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Shard the weights of ``network`` over ``mesh``: block by block, then all weights outside blocks."""
    # Networks return views, but no code modifies a network's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for unit in [*_blocks(network), network]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
        open_duals(unit)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Return the members of module lists that have weights, such as blocks of trunk and heads; inner ones first."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    found = [block for blocks in lists for block in blocks if not isinstance(block, nn.ModuleList | nn.ModuleDict)]
    return [block for block in reversed(found) if any(True for _ in block.parameters())]


def _policy(gather: torch.dtype | None) -> MixedPrecisionPolicy:
    """Return FSDP2's policy: gather in dtype ``gather``, reduce gradients in float32, leave inputs to autocast."""
    if gather in (None, torch.float32):
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=gather, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _without_weights(network: nn.Module) -> nn.Module:
    """Copy a network with its weights on the meta device and with the original forward methods."""
    weights = {id(w): nn.Parameter(torch.empty_like(w, device="meta"), w.requires_grad) for w in network.parameters()}
    copied = copy.deepcopy(network, weights)
    for module in copied.modules():
        module.__dict__.pop("forward", None)  # of models/activation_checkpointing.py, it refers to the original
    return copied


def _whole_state(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    found = {name: to_cpu(value, keep) if isinstance(value, Tensor) else value for name, value in state.items()}
    return found if keep else {}


@torch.no_grad()
def _sharded_state(state: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
    """Join this device's shards of the moments of a weight that are plain tensors, in host memory, to DTensors."""
    shape = local_tensor(weight).shape

    def joined(value: Any) -> Any:
        is_shard = isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == shape
        return from_shard(value, weight) if is_shard else value

    return {name: joined(value) for name, value in state.items()}


def _spread_state(state: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
    """Shard the moments of a weight like the weight; other tensors, such as counters, are not sharded."""
    return {
        name: spread_like(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value
        for name, value in state.items()
    }
