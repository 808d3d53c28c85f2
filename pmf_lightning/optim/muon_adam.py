"""Muon for matrices and Nesterov-Adam for all other parameters, in one optimiser.

A single ``torch.optim.Optimizer`` works with Lightning's automatic optimisation: clipping, accumulation, schedules and
the global step. All constants that are not configured are optax's (optax.contrib.muon 0.2.8).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pmf_lightning.distributed.dtensor import local_tensor
from pmf_lightning.optim.distributed_muon import chunks, distribution_of
from pmf_lightning.optim.host_moments import HostMoments, loss_of
from pmf_lightning.optim.newton_schulz import COEFFICIENTS, EPS, STEPS, newton_schulz, working_dtype
from pmf_lightning.optim.side_by_side import side_by_side
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

KINDS = ("muon", "adam")
STACK_ELEMENTS = 2**26  # elements in a stack of matrices: bounds the extra memory of a step, without effect on results
MOST_STACKS = 8  # largest number of stacks orthogonalised together
CPU_ELEMENTS = 2**18  # the same for one CPU, whose cache holds a stack of this size through all operations of a step
NS_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class MuonAdam(HostMoments):
    """Update each group by its ``kind``: "muon" (2-D parameters only) or "adam"; any other kind raises ValueError.

    Muon: momentum with Nesterov and bias correction, orthogonalised by Newton-Schulz, times sqrt(max(1, rows/cols)) of
    torch's (out, in) layout (Jordan et al. 2024). Adam: with Nesterov momentum (Dozat 2016), as optax.adamw with
    nesterov=True. Weight decay is decoupled in both. Both count steps per parameter and skip parameters without a
    gradient. Momenta have the dtype of their parameter.

    With several ranks, each orthogonalises a share of the matrices and the results are exchanged (distributed_muon.py).
    With ``distribute`` False, every rank with full weights orthogonalises all of them. Parameters may be DTensors
    sharded along their rows, as by FSDP2; their orthogonalisation is always distributed.

    ``ns_dtype`` is the precision of Newton-Schulz: "float32", "bfloat16", or "auto" for that of ``working_dtype``. Any
    other raises UserError.

    ``lr``, ``weight_decay`` and the constants may also be set per group. Negative ``lr`` or ``weight_decay`` raises
    UserError.

    With ``moments_device`` "cpu" beside weights on a GPU, the moments are in host memory (HostMoments).
    """

    def __init__(
        self,
        param_groups: Iterable[dict],
        lr: int | float,
        weight_decay: int | float = 0.0,
        momentum: float = 0.95,
        betas: Sequence[Number] = (0.9, 0.95),
        eps: float = EPS,
        ns_steps: int = STEPS,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        distribute: bool = True,
        ns_dtype: str = "auto",
        moments_device: str | None = None,
    ):
        if ns_dtype not in NS_DTYPES:
            raise UserError(f"optimizer.ns_dtype={ns_dtype}: give {', '.join(NS_DTYPES)}")
        self.distribute, self.ns_dtype = distribute, NS_DTYPES[ns_dtype]
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "ns_steps": ns_steps,
            "ns_coefficients": tuple(ns_coefficients),
        }
        super().__init__(param_groups, defaults, moments_device=moments_device)

    def add_param_group(self, param_group: dict) -> None:
        """Add a group after checking its kind, the shapes of its parameters and its hyperparameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if (kind := group.get("kind")) not in KINDS:
            raise ValueError(f"parameter group has kind {kind!r}; known: {', '.join(KINDS)}")
        if kind == "muon" and (shapes := [tuple(p.shape) for p in group["params"] if p.ndim != 2]):
            raise ValueError(
                f"a parameter of shape {shapes[0]} is in a group of kind 'muon', which takes matrices only"
            )
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise UserError(f"optimizer {name} is {group[name]}; it must be zero or positive")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise UserError(f"optimizer betas are {list(group['betas'])}; they must be from 0 to below 1")

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state after checking that the kinds of its groups match this optimiser's groups."""
        stored, own = (
            [group.get("kind") for group in groups] for groups in (state_dict["param_groups"], self.param_groups)
        )
        if stored != own:
            raise ValueError(f"the stored optimiser has groups of kind {stored}, this one has {own}")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Take one step and return the loss of ``closure``, if one is given."""
        loss = loss_of(closure)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            muon = group["kind"] == "muon"
            for parameter in parameters:
                self._advance(parameter, ("momentum",) if muon else ("momentum", "variance"))
            if muon and parameters:
                self._muon(parameters, group)
            else:
                for bucket in self._buckets(parameters, by_shape=False):
                    for part in self.parts(bucket):
                        self._adam(part, group)
        return loss

    def _advance(self, parameter: nn.Parameter, moments: tuple[str, ...]) -> None:
        """Increment the step count of ``parameter``; initialise its moments with zeros before the first step.

        The moments are then where they are kept, also after a state was loaded.
        """
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in moments:
                state[name] = torch.zeros_like(parameter)
        self._keep(parameter)
        state["step"] += 1

    def _buckets(self, parameters: list[nn.Parameter], by_shape: bool) -> Iterable[list[nn.Parameter]]:
        """Group parameters for batched updates: same step, device, dtype and, with ``by_shape``, shape."""
        buckets: dict[Hashable, list[nn.Parameter]] = defaultdict(list)
        for p in parameters:
            buckets[(self.state[p]["step"], p.device, p.dtype, p.shape if by_shape else None)].append(p)
        return buckets.values()

    def _muon(self, parameters: list[nn.Parameter], group: dict) -> None:
        """Update matrices by Muon, in parts that bound the memory, or that fit into the cache of a CPU."""
        size = self._distribution(parameters).size
        on_cpu = size == 1 and parameters[0].device.type == "cpu"
        most = self.part_elements or (CPU_ELEMENTS if on_cpu else STACK_ELEMENTS * min(size, MOST_STACKS))
        parts = [
            partial(self._muon_part, bucket[part], group)
            for bucket in self._buckets(parameters, by_shape=size == 1)
            for part in chunks([tuple(p.shape) for p in bucket], most)
        ]
        if on_cpu:
            side_by_side(parts)
        else:
            for part in parts:
                part()

    def _muon_part(self, parameters: list[nn.Parameter], group: dict) -> None:
        """Update matrices of the same step by Muon; without distribution they have the same shape."""
        with self.beside_weights(parameters):
            combined = self._look_ahead(parameters, group["momentum"])
        _decay(parameters, group)

        def work(stack: Tensor) -> Tensor:
            return newton_schulz(stack, group["ns_steps"], group["ns_coefficients"], group["eps"], self.ns_dtype)

        shapes = [tuple(p.shape) for p in parameters]
        updates = self._distribution(parameters).orthogonalised(combined, shapes, work)
        for shape in dict.fromkeys(shapes):
            places = [i for i, other in enumerate(shapes) if other == shape]
            rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
            weights = _parts(parameters[i] for i in places)
            torch._foreach_add_(weights, [updates[i] for i in places], alpha=-rate)

    def _distribution(self, parameters: list[nn.Parameter]):
        return distribution_of(parameters, self.distribute, self.ns_dtype or working_dtype(parameters[0]))

    def _adam(self, parameters: Sequence[nn.Parameter], group: dict) -> None:
        """Update parameters of any shapes by Adam."""
        with self.beside_weights(parameters):
            ahead = self._look_ahead(parameters, group["betas"][0])
            scales = self._scales(parameters, group["betas"][1])
        torch._foreach_add_(scales, group["eps"])
        _decay(parameters, group)
        torch._foreach_addcdiv_(_parts(parameters), ahead, scales, value=-group["lr"])

    def _look_ahead(self, parameters: Sequence[nn.Parameter], decay: float) -> Sequence[Tensor]:
        """Update the momenta; return the Nesterov updates, which are weighted sums of momentum and gradient."""
        step = self.state[parameters[0]]["step"]
        momenta, gradients = _parts(self.state[p]["momentum"] for p in parameters), _gradients(parameters)
        torch._foreach_lerp_(momenta, gradients, 1 - decay)
        combined = torch._foreach_mul(momenta, decay / (1 - decay ** (step + 1)))
        torch._foreach_add_(combined, gradients, alpha=(1 - decay) / (1 - decay**step))
        return combined

    def _scales(self, parameters: Sequence[nn.Parameter], decay: float) -> Sequence[Tensor]:
        """Update the variances; return their square roots without the bias of the first steps."""
        step = self.state[parameters[0]]["step"]
        variances, gradients = _parts(self.state[p]["variance"] for p in parameters), _gradients(parameters)
        torch._foreach_mul_(variances, decay)
        torch._foreach_addcmul_(variances, gradients, gradients, value=1 - decay)
        scales = torch._foreach_sqrt(variances)
        torch._foreach_div_(scales, math.sqrt(1 - decay**step))
        return scales


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [local_tensor(p.grad).to(p.dtype) for p in parameters]


def _parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the local tensors of this rank."""
    return [local_tensor(tensor) for tensor in tensors]


def _decay(parameters: Sequence[nn.Parameter], group: dict) -> None:
    """Apply decoupled weight decay (Loshchilov and Hutter 2019)."""
    if group["weight_decay"]:
        torch._foreach_mul_(_parts(parameters), 1 - group["lr"] * group["weight_decay"])
