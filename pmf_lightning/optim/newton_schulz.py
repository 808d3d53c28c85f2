"""Newton-Schulz orthogonalisation of stacked matrices, the iteration of Muon."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.utils.precision import Number

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # K. Jordan's quintic, the default of optax.contrib.muon
STEPS = 5
EPS = 1e-8

ALONE = 2**15  # elements from which a CPU takes matrices one at a time, which then stay in its cache
PANEL = 96  # rows of a symmetric product that a CPU computes at once
LONG = 1.5  # long side over short side from which two steps with one pair of long products are cheaper


@torch.no_grad()
def newton_schulz(
    matrices: Float[Tensor, "n rows cols"],
    steps: int = STEPS,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = EPS,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n rows cols"]:
    """Return every matrix with singular values close to 1 and the same singular vectors.

    Each step is ``x <- a x + (b g + c g g) x`` with ``g = x x'``, starting at ``x / (|x|_F + eps)``. The arithmetic is
    in ``dtype``, by default in ``working_dtype(matrices)``; the result has the dtype of the input.
    Source: Jordan et al. 2024, "Muon", in the form of optax.contrib.muon.
    """
    x = _normalised(matrices, eps, dtype or working_dtype(matrices))
    if x.device.type == "cpu" and x[0].numel() >= ALONE:
        results = [_iterate(one, steps, coefficients).to(matrices.dtype) for one in x]
        return torch.stack(results) if len(x) > 1 else results[0][None]
    return _iterate(x, steps, coefficients).to(matrices.dtype)


def working_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of the iteration for matrices such as ``like``: float64 for float64, bfloat16 on a GPU, float32.

    It represents the results without loss.
    """
    if like.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if like.is_cuda else torch.float32


def _normalised(matrices: Float[Tensor, "n rows cols"], eps: float, dtype: torch.dtype) -> Float[Tensor, "n rows cols"]:
    """Divide each matrix by its Frobenius norm, in at least float32, and cast to the dtype of the iteration."""
    exact = matrices if matrices.dtype == torch.float64 else matrices.float()
    x = exact / (torch.linalg.matrix_norm(exact, keepdim=True) + eps)
    return x.to(dtype)


def _iterate(
    x: Float[Tensor, "*n rows cols"], steps: int, coefficients: tuple[float, float, float]
) -> Float[Tensor, "*n rows cols"]:
    """Take ``steps`` steps from a stack, or from one matrix; ``x`` may be overwritten.

    Two steps of a long matrix are taken with products of the short side alone. With p = b g + c g g they are
    ``x <- (a + q)(a + p) x``, where q is p for the Gram matrix after one step, ``(a + p) g (a + p)``. Half precision
    has too few digits for that, and so has float32 for more than two steps.
    """
    a, b, c = coefficients
    rows, cols = x.shape[-2:]
    tall = rows > cols  # then the smaller Gram matrix is x'x and it multiplies from the right: no transposed copy
    exact = x.dtype in (torch.float32, torch.float64)
    pairs = steps // 2 if exact and max(rows, cols) >= LONG * min(rows, cols) else 0
    # Buffers are reused and swapped, because allocating them in every step costs as much as a matrix product.
    x_next = torch.empty_like(x)
    gram, p, half, product = (x.new_empty(*x.shape[:-2], *2 * [min(rows, cols)]) for _ in range(4))
    sides = [y.mT if tall else y for y in (x, x_next)]
    grams = [_symmetric(gram, y, y.mT) for y in sides]
    polynomial = _symmetric(p, gram, gram, gram, b, c)
    if pairs:
        ahead = [_symmetric(half, p, gram, gram, a), _symmetric(gram, half, p, half, a)]
        second = _symmetric(half, gram, gram, gram, b, c)
        both = _symmetric(product, half, p, p, a)
    for step in range(steps - pairs):
        grams[step % 2]()
        polynomial()
        if step < pairs:
            for compute in (*ahead, second, both):
                compute()
            product.add_(half, alpha=a)
        factor, scale = (product, a * a) if step < pairs else (p, a)
        _add_product(x, *((x, factor) if tall else (factor, x)), scale, 1, x_next)
        x, x_next = x_next, x
    return x


def _symmetric(
    out: Tensor, left: Tensor, right: Tensor, add: Tensor | None = None, beta: Number = 0, alpha: Number = 1
) -> Callable[[], None]:
    """Return a function that computes ``out = beta add + alpha left @ right`` for a result known to be symmetric.

    One large matrix on a CPU is computed in panels of rows, up to the diagonal, and mirrored.
    """
    size = out.shape[-1]
    count = max(1, size // PANEL) if out.ndim == 2 and out.dtype in (torch.float32, torch.float64) else 1
    panel = -(-size // count)
    products, copies = [], []
    for start in range(0, size, panel):
        rows, cols = slice(start, start + panel), slice(0, start + panel)
        summand, target = (tensor[..., rows, cols] for tensor in (out if add is None else add, out))
        products.append((summand, left[..., rows, :], right[..., cols], beta, alpha, target))
        if start:
            copies.append((out[:start, rows], out[rows, :start].mT))

    def compute() -> None:
        for arguments in products:
            _add_product(*arguments)
        for upper, lower in copies:
            upper.copy_(lower)

    return compute


def _add_product(add: Tensor, left: Tensor, right: Tensor, beta: Number, alpha: Number, out: Tensor) -> None:
    """Compute ``out = beta add + alpha left @ right`` of matrices or stacks; ``beta`` 0 does not read ``add``."""
    product = torch.addmm if out.ndim == 2 else torch.baddbmm
    product(add, left, right, beta=beta, alpha=alpha, out=out)
