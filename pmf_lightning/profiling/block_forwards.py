"""Count the transformer blocks that a training step runs per image, from the objective's calls of the network.

The unit is the forward pass of one block on one image. A tangent (forward-mode derivative) counts as one more, a
backward pass as two. The objective runs on a stub network without arithmetic, so thousands of images cost nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pmf_lightning.objectives.base import Objective, Passes
from pmf_lightning.objectives.jvp.forward_mode import Dual
from pmf_lightning.profiling.step_memory import dummy_batch, images_of
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


def count(network: nn.Module, objective: Objective, seed: int = 0, images: int = IMAGES) -> BlockForwards:
    """Return the block-forwards per image of a training step, from one batch of about ``images``.

    Images are those that the network processes or generates. The blocks of encoders are not counted.
    """
    stand_in = CountingNetwork(network)
    objective, encoders = objective.counted()
    batch = dummy_batch(objective, images)
    objective(stand_in, batch, objective.draw(batch, seed, step=0), encoders)
    seen = images_of(objective, batch)
    return BlockForwards(*(getattr(stand_in, field.name) / seen for field in fields(BlockForwards)))


def of_passes(network: nn.Module, passes: Passes) -> BlockForwards:
    """Return the block-forwards per image of known passes, such as those of an official code."""
    depth = {"trunk": len(network.trunk), **{name: len(head.blocks) for name, head in network.heads.items()}}

    def blocks(part: Mapping[str, Number]) -> Number:
        return sum(times * depth[name] for name, times in part.items())

    values = blocks(passes.values)
    return BlockForwards(blocks(passes.guidance), values, blocks(passes.tangent), 2 * values)


def _has_tangent(image: Tensor) -> bool:
    return isinstance(image, Dual) or forward_ad.unpack_dual(image).tangent is not None
