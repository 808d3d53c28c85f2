"""RMSNorm, softmax and RoPE as single operations: fewer passes over memory than the formulas, the same bits everywhere.

All can be differentiated forwards and backwards. torch.compile fuses the formulas itself, so it gets these instead.
Forward-mode rules (objectives/jvp/forward_rules.py) are found by the names of the functions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from pmf_lightning.utils.precision import Number, at_least_float32, no_autocast


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor, eps: Number) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis, which has the ``shape`` of ``weight``.

    A CPU has no fused kernel for it. Other devices use torch's. Shape and dtype are those of ``x``.
    """
    if has_torch_function((x, weight)):
        return handle_torch_function(rms_norm, (x, weight), x, shape, weight, eps)
    if torch.compiler.is_compiling() or x.device.type not in ("cpu", "meta"):
        return F.rms_norm(x, shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm that stores its input alone and computes the scale again in the backward pass."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: Number) -> Tensor:
        return (x * _inverse_rms(x, eps)).mul_(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, ctx.eps = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        with no_autocast(x):
            scale = _inverse_rms(x, ctx.eps)
            unit = x * scale
            product = grad * unit
            along = (product @ weight).unsqueeze(-1) / len(weight)
            dx = torch.addcmul(grad * weight, unit, along, value=-1).mul_(scale)
            return dx, product.sum(tuple(range(x.dim() - 1))), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dweight: Tensor | None, _: None) -> Tensor:
        x, weight = ctx.saved_tensors
        scale = _inverse_rms(x, ctx.eps)
        tangent = scale * dx - x * (scale.pow(3) * (x * dx).mean(-1, keepdim=True))
        return tangent * weight if dweight is None else tangent * weight + x * scale * dweight


def softmax(x: Tensor, dim: int) -> Tensor:
    """Return the softmax of ``x`` over the axis ``dim``, with gradients that do not depend on the number of threads.

    On a CPU the last bits of the gradients of torch's own softmax change with the number of threads, unless the axis
    has a multiple of 16 elements. No others do in a training step of ``pmf_digits``.
    """
    if has_torch_function((x,)):
        return handle_torch_function(softmax, (x,), x, dim)
    if torch.compiler.is_compiling() or x.device.type not in ("cpu", "meta"):
        return x.softmax(dim)
    return _Softmax.apply(x, dim)


class _Softmax(torch.autograd.Function):
    """Softmax whose gradient and tangent are w * (g - sum(w * g)), from the stored result w."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return x.softmax(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        weighted = weights * grad
        return weighted.addcmul_(weights, weighted.sum(ctx.dim, keepdim=True), value=-1), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        (weights,) = ctx.saved_tensors
        weighted = weights * dx
        return weighted - weights * weighted.sum(ctx.dim, keepdim=True)


def _inverse_rms(x: Tensor, eps: Number) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square().div(x.shape[-1]).add(eps).rsqrt()


def rotate_pairs(
    x: Float[Tensor, "*b n d"], cos: Float[Tensor, "n pairs"], sin: Float[Tensor, "n pairs"]
) -> Float[Tensor, "*b n d"]:
    """Rotate each pair of channels (2i, 2i+1) of ``x`` by the angle whose cosine and sine are given (RoPE).

    The pair is a complex number that is multiplied with cos + i sin. Half precision becomes float32.
    """
    if has_torch_function((x,)):
        return handle_torch_function(rotate_pairs, (x,), x, cos, sin)
    x = at_least_float32(x)
    if torch.compiler.is_compiling():
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    turn = torch.complex(cos.to(x.dtype), sin.to(x.dtype))
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)
