"""Weights of loss terms."""

from jaxtyping import Float
from torch import Tensor

from pmf_lightning.precision import Number


def adaptive(loss: Float[Tensor, " b"], power: Number, eps: Number) -> Float[Tensor, " b"]:
    """Return L / stop_gradient((L + eps)^power) per sample (MeanFlow).

    With power 1 the value is 1 but for eps, whatever the network does: watch the plain squared errors instead.
    """
    return loss / (loss.detach() + eps) ** power
