"""Two bilinear rules to resize images to Inception's 299 pixels; papers differ in them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

Pixels = Float[Tensor, "b c h w"]


def tensorflow1(images: Pixels, side: int) -> Float[Tensor, "b c side side"]:
    """Sample output pixel i at i x (old size / new size): the rule of TensorFlow 1, torch-fidelity and ADM."""
    return interpolate_bilinear_2d_like_tensorflow1x(images, size=(side, side), align_corners=False)


def half_pixel(images: Pixels, side: int) -> Float[Tensor, "b c side side"]:
    """Sample output pixel i at (i + 0.5) x (old size / new size) - 0.5, without antialiasing; borders are repeated.

    This is the rule of the JAX codes of pMF, iMF and Drifting. Two of them contain an unused correction to TensorFlow
    1's rule.
    """
    size = (side, side)
    return torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=False)


RESIZES = {"tensorflow1": tensorflow1, "half_pixel": half_pixel}
