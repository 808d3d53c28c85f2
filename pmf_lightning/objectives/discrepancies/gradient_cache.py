"""Gradient caching: the gradient of a loss of many images, at the memory of a micro-batch.

RDM (arXiv 2607.02375; train/grad_caching.py). The first pass computes all features without a graph, the loss gives its
gradient with respect to them, and the second pass propagates it through one micro-batch at a time. The sum is the
gradient of the full batch. FD-loss does not decompose over samples either, so it needs the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.utils.precision import Number

Features = Mapping[str, Tensor]  # encoder -> [rows, features]
LossOfFeatures = Callable[[dict[str, Tensor]], tuple[Tensor, Any]]


def feature_gradients(
    parts: Sequence[Features], loss_of: LossOfFeatures, scale: Number = 1.0
) -> tuple[Float[Tensor, ""], Any, list[dict[str, Tensor]]]:
    """Return (loss, info, one gradient of ``scale`` * loss per part) for the features of all micro-batches.

    ``parts`` holds the features of each micro-batch, without a graph. ``loss_of`` maps the features of the full batch
    to (loss, info). The returned loss is detached and not scaled.
    """
    sizes = [len(next(iter(part.values()))) for part in parts]
    leaves = {name: torch.cat([part[name].detach() for part in parts]).requires_grad_() for name in parts[0]}
    with torch.enable_grad():
        loss, info = loss_of(leaves)
        found = torch.autograd.grad(loss * scale, list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
    split = {name: gradient.split(sizes) for name, gradient in gradients.items()}
    return loss.detach(), info, [{name: split[name][i] for name in split} for i in range(len(parts))]


def surrogate(features: Features, gradients: Features) -> Float[Tensor, ""]:
    """Return sum(features * gradients): its gradient is that of the full batch's loss through this micro-batch."""
    return torch.stack([(features[name] * gradients[name]).sum() for name in gradients]).sum()


def cached_backward(
    batches: Sequence[Any], features_of: Callable[[Any], Features], loss_of: LossOfFeatures, scale: Number = 1.0
) -> tuple[Float[Tensor, ""], Any]:
    """Add the gradient of ``scale`` * loss of all ``batches`` to the parameters, and return (loss, info).

    ``features_of`` maps a micro-batch to the features of its images. It runs twice per micro-batch and must give the
    same features both times: evaluation mode, no dropout, and noise that is part of the micro-batch.
    """
    with torch.no_grad():
        parts = [features_of(batch) for batch in batches]
    loss, info, gradients = feature_gradients(parts, loss_of, scale)
    for batch, gradient in zip(batches, gradients, strict=True):
        surrogate(features_of(batch), gradient).backward()
    return loss, info
