"""Count the parameters, tokens and multiply-adds of a network from its real graph."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pmf_lightning.profiling.meta_results import MetaResults
from pmf_lightning.utils.errors import UserError


class NotCountedError(UserError):
    """The network or the objective is not of the kind whose costs are counted."""


@dataclass(frozen=True)
class Cost:
    """Parameters for sampling (one head) and training (all heads), tokens, and multiply-adds of one evaluation."""

    parameters: int
    training_parameters: int
    tokens: int
    multiply_adds: int

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters to sample, {self.training_parameters:,} to train, {self.tokens} tokens, "
            f"{self.multiply_adds / 1e9:.3g} G multiply-adds per image and evaluation"
        )


def count(network: nn.Module, head: str = "u") -> Cost:
    """Count the costs of a backbone (vit.py, jit_vit.py) on the meta device: no memory, no arithmetic."""
    training = sum(weight.numel() for weight in network.parameters())
    others = sum(w.numel() for name, branch in network.heads.items() if name != head for w in branch.parameters())
    return Cost(training - others, training, network.prefix + network.grid**2, _multiply_adds(network, head))


def _blank(embed: nn.Module) -> Tensor:
    """Return a dummy condition of one sample: codes, a label or a number."""
    shape = (1, embed.codes) if hasattr(embed, "codes") else (1,)
    return torch.zeros(shape, dtype=torch.long if hasattr(embed, "table") else torch.float32, device="meta")


def _multiply_adds(network: nn.Module, head: str) -> int:
    on_meta = {name: torch.empty_like(weight, device="meta") for name, weight in network.named_parameters()}
    image = torch.empty(1, network.channels, network.resolution, network.resolution, device="meta")
    conditions = {name: _blank(embed) for name, embed in network.conditions.items()}
    with torch.no_grad(), MetaResults(), FlopCounterMode(display=False) as counter:
        call = {"heads": (head,), "attention": "plain"}
        torch.func.functional_call(network, on_meta, (image, conditions), call)
    return counter.get_total_flops() // 2
