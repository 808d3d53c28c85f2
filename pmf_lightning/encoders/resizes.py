"""How images reach the 299 pixels that Inception sees: two bilinear rules that papers differ in."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

Pixels = Float[Tensor, "b c h w"]


def tensorflow1(images: Pixels, side: int) -> Float[Tensor, "b c side side"]:
    """Sample output pixel i at i x (old size / new size): TensorFlow 1's rule, that of torch-fidelity and ADM."""
    return interpolate_bilinear_2d_like_tensorflow1x(images, size=(side, side), align_corners=False)


def half_pixel(images: Pixels, side: int) -> Float[Tensor, "b c side side"]:
    """Sample output pixel i at (i + 0.5) x (old size / new size) - 0.5, without antialiasing; borders are repeated.

    The JAX codes of pMF, iMF and Drifting do so: the correction to TensorFlow 1's rule stands in two of them, unused.
    """
    size = (side, side)
    return torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=False)


RESIZES = {"tensorflow1": tensorflow1, "half_pixel": half_pixel}
