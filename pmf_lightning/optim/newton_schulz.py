"""Newton-Schulz orthogonalisation of stacked matrices, the iteration of Muon."""

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # K. Jordan's quintic, the default of optax.contrib.muon
STEPS = 5
EPS = 1e-8


@torch.no_grad()
def newton_schulz(
    matrices: Float[Tensor, "n rows cols"],
    steps: int = STEPS,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = EPS,
) -> Float[Tensor, "n rows cols"]:
    """Return every matrix with singular values close to 1 and the same singular vectors.

    Each step is ``x <- a x + (b g + c g g) x`` with ``g = x x'``, starting at ``x / (|x|_F + eps)``. The arithmetic is
    float64 for float64 input, bfloat16 on CUDA and float32 elsewhere; the result has the dtype of the input.
    Source: Jordan et al. 2024, "Muon", in the form of optax.contrib.muon.
    """
    a, b, c = coefficients
    rows, cols = matrices.shape[-2:]
    tall = rows > cols  # then the smaller Gram matrix is x'x and it multiplies from the right: no transposed copy
    x = _normalised(matrices, eps)
    # Buffers are reused and swapped, because allocating them in every step costs as much as a matrix product.
    x_next, gram = torch.empty_like(x), x.new_empty(len(x), min(rows, cols), min(rows, cols))
    polynomial = torch.empty_like(gram)
    for _ in range(steps):
        torch.bmm(*((x.mT, x) if tall else (x, x.mT)), out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        torch.baddbmm(x, *((x, polynomial) if tall else (polynomial, x)), beta=a, out=x_next)
        x, x_next = x_next, x
    return x.to(matrices.dtype)


def _normalised(matrices: Float[Tensor, "n rows cols"], eps: float) -> Float[Tensor, "n rows cols"]:
    """Divide each matrix by its Frobenius norm, in at least float32, and cast to the dtype of the iteration."""
    exact = matrices if matrices.dtype == torch.float64 else matrices.float()
    x = exact / (torch.linalg.matrix_norm(exact, keepdim=True) + eps)
    return x.to(working_dtype(matrices))


def working_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of the iteration for matrices such as ``like``, which represents the results without loss."""
    if like.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if like.is_cuda else torch.float32
