"""Training steps without content, of the shape that an objective takes: what blocks and bytes are counted on."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pmf_lightning.draws import Shard
from pmf_lightning.drift_features.frozen import DriftFeatures
from pmf_lightning.objectives.contract import Batch
from pmf_lightning.objectives.drifting import Drifting
from pmf_lightning.objectives.drifting_draws import DriftingBatch

Rivals = tuple[int, int]  # real images of its class, and of any class, that each label of drifting meets


def without_perceptual(objective: Any) -> Any:
    """Return the objective without perceptual distances."""
    return replace(objective, perceptual={}) if getattr(objective, "perceptual", None) else objective


def further_arguments(objective: Any) -> dict[str, Any]:
    """Return what the objective is called with beside network, batch and draws: for drifting the pixels as feature."""
    return {"features": DriftFeatures()} if isinstance(objective, Drifting) else {}


def dots(objective: Any, images: int, rivals: Rivals = (1, 0)) -> Batch | DriftingBatch:
    """Return a batch of zeros, one pixel each, that trains on ``images`` images; drifting has one label at least."""
    if not isinstance(objective, Drifting):
        return Batch(torch.zeros(images, 1, 1, 1), torch.zeros(images, dtype=torch.long))
    labels, (positives, negatives) = max(1, images // objective.generated), rivals
    x, others = torch.zeros(labels, positives, 1, 1, 1), torch.zeros(labels, negatives, 1, 1, 1)
    return DriftingBatch(x, torch.zeros(labels, dtype=torch.long), others)


def images_of(objective: Any, batch: Batch | DriftingBatch) -> int:
    """Return how many images the network sees or makes of a batch."""
    return len(batch.y) * getattr(objective, "generated", 1)


def without_values(network: nn.Module, objective: Any, images: int, shard: Shard, rivals: Rivals) -> tuple[Any, Any]:
    """Return a batch on the meta device, as large as the network wants it, and draws to go with it.

    The scalars among the draws of flows have values, since they decide what is computed.
    """
    small = dots(objective, images, rivals)
    draws = objective.draw(small, 0, 0, shard)
    shape = (network.channels, network.resolution, network.resolution)

    def whole(pixels: torch.Tensor) -> torch.Tensor:
        return torch.empty(*pixels.shape[:-3], *shape, device="meta")

    pictures = {name: whole(value) for name, value in vars(small).items() if name != "y"}
    return replace(small, y=small.y.to("meta"), **pictures), replace(draws, noise=whole(draws.noise))
