"""Count the transformer blocks that a training step runs per image, from the objective's calls of the network.

The unit is the forward pass of one block on one image. A tangent (forward-mode derivative) counts as one more, a
backward pass as two. The objective runs on a stub network without arithmetic, so thousands of images cost nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pmf_lightning.objectives.jvp.forward_mode import Dual
from pmf_lightning.profiling.step_memory import dummy_batch, further_arguments, images_of, without_perceptual
from pmf_lightning.utils.precision import Number

IMAGES = 2048  # fractions such as that of guided rows are averaged over these images: the total is exact to 0.3 %


@dataclass(frozen=True)
class BlockForwards:
    """Block-forwards per image of the guided target, the values (with a graph), du/dt, and the backward pass."""

    guidance: Number
    values: Number
    tangent: Number
    backward: Number

    @property
    def total(self) -> Number:
        """Block-forwards of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


class CountingNetwork:
    """Stub network: every head returns the input; it counts, over all images, the blocks that ``network`` would run."""

    def __init__(self, network: nn.Module):
        self.classes = network.classes
        self.trunk = len(network.trunk)
        self.heads = {name: len(head.blocks) for name, head in network.heads.items()}
        self.guidance = self.values = self.tangent = self.backward = 0

    def __call__(
        self,
        image: Tensor,
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: str | None = None,
    ) -> dict[str, Tensor]:
        """Count the blocks of a call."""
        heads = tuple(heads or self.heads)
        rows = len(image)
        blocks = rows * (self.trunk + sum(self.heads[head] for head in heads))
        if _has_tangent(image):
            self.tangent += rows * (self.trunk + self.heads["u"])  # only du/dt has a tangent
        if torch.is_grad_enabled():
            self.values += blocks
            self.backward += 2 * blocks
        elif _has_tangent(image):
            self.tangent += blocks  # values computed a second time
        else:
            self.guidance += blocks
        return dict.fromkeys(heads, image)


def count(network: nn.Module, objective: Any, seed: int = 0, images: int = IMAGES) -> BlockForwards:
    """Return the block-forwards per image of a training step, from one batch of about ``images``.

    For Drifting, images are the generated ones. The blocks of perceptual networks and encoders are not counted.
    """
    stand_in = CountingNetwork(network)
    objective = without_perceptual(objective)
    batch = dummy_batch(objective, images)
    objective(stand_in, batch, objective.draw(batch, seed, step=0), **further_arguments(objective))
    seen = images_of(objective, batch)
    return BlockForwards(*(getattr(stand_in, field.name) / seen for field in fields(BlockForwards)))


def official(network: nn.Module) -> BlockForwards | None:
    """Return the block-forwards of the official JAX code of pMF and iMF; None for a network without heads u and v.

    That code runs trunk and v-head three times for the guided target (v_c at the sampled scale, v_c at the scale inside
    the interval, v_u), and every row has a tangent. The compiler drops unused results. The total is 136 for pMF-B.
    """
    depth = {name: len(head.blocks) for name, head in network.heads.items()}
    if depth.keys() != {"u", "v"}:
        return None
    trunk = len(network.trunk)
    whole = trunk + depth["u"] + depth["v"]
    return BlockForwards(3 * (trunk + depth["v"]), whole, trunk + depth["u"], 2 * whole)


def _has_tangent(image: Tensor) -> bool:
    return isinstance(image, Dual) or forward_ad.unpack_dual(image).tangent is not None
