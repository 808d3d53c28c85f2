"""Condition embeddings: vectors, and tokens (a few learned tokens per condition, plus the embedding of its value)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pmf_lightning.models.layers import (
    EmbeddingTable,
    Init,
    Linear,
    Stream,
    Tokens,
    cat_with_tangents,
    fan_in_normal,
    normal,
)
from pmf_lightning.models.positions import sincos_2d
from pmf_lightning.utils.precision import Number

Vector = Float[Tensor, "b d"]
FREQUENCIES = 256  # size of the sinusoidal embedding of a scalar, as in DiT, JiT, iMF and pMF


class LearnedTokens(nn.Module):
    """A learned [1, n, width] tensor for condition tokens or positions."""

    optim_kinds = {"weight": "adam"}

    def __init__(self, count: int, width: int, std: Number):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, count, width))
        self.std = std

    def init_weights(self, stream: Stream) -> None:
        """Initialise from N(0, std^2)."""
        nn.init.normal_(self.weight, std=self.std, generator=stream("weight"))


class SinCosPositions(LearnedTokens):
    """Learned position per patch, initialised with the sines and cosines of column and row, computed in ``dtype``.

    None computes them in the dtype of the table, which gives the bits of the fixed table that JiT's network computes.
    """

    def __init__(self, grid: int, width: int, dtype: torch.dtype | None = None):
        super().__init__(grid**2, width, std=0)
        self.grid, self.dtype = grid, dtype

    def init_weights(self, stream: Stream) -> None:
        """Initialise the table."""
        like = self.weight if self.dtype is None else self.weight.to(self.dtype)
        self.weight.copy_(sincos_2d(self.grid, self.weight.shape[2], like))


def sinusoid(values: Float[Tensor, " b"], size: int) -> Float[Tensor, "b size"]:
    """Return [cos(s f), sin(s f)] with f_j = 10000^(-j/(size/2)), of the unscaled value s."""
    half = size // 2
    powers = torch.arange(half, dtype=values.dtype, device=values.device) / half
    angles = values[:, None] * torch.exp(-math.log(10_000.0) * powers)
    return cat_with_tangents(torch.cat, (angles.cos(), angles.sin()), -1)


def scalar_mlp(width: int, init: Init) -> tuple[Linear, Linear]:
    """Return the two linear layers of ``embed_scalar``."""
    return Linear(FREQUENCIES, width, init), Linear(width, width, init)


def embed_scalar(values: Float[Tensor, " b"], mlp_in: Linear, mlp_out: Linear) -> Vector:
    """Embed one unscaled value per sample: sinusoid, Linear, SiLU, Linear."""
    # At least float32 and the precision of the weights: a half-precision sinusoid cannot resolve nearby times.
    wide = values.to(torch.promote_types(mlp_in.weight.dtype, torch.float32))
    waves = sinusoid(wide, FREQUENCIES).to(mlp_in.weight.dtype)
    return mlp_out(F.silu(mlp_in(waves)))


class ScalarVector(nn.Module):
    """Scalar embedding to a vector."""

    def __init__(self, width: int, std: Number):
        super().__init__()
        self.mlp_in, self.mlp_out = scalar_mlp(width, normal(std))

    def forward(self, values: Float[Tensor, " b"]) -> Vector:
        """Embed one scalar per sample."""
        return embed_scalar(values, self.mlp_in, self.mlp_out)


class LabelVector(nn.Module):
    """Class embedding to a vector."""

    def __init__(self, rows: int, width: int, std: Number):
        super().__init__()
        self.table = EmbeddingTable(rows, width, std)

    def forward(self, labels: Int64[Tensor, " b"]) -> Vector:
        """Embed one label per sample."""
        return self.table(labels)


class VectorCondition(Linear):
    """Linear map of a vector, without bias and initialised with zeros: the vector 0 and a new network add nothing.

    It is optimised by Adam, as an embedding table is: a column is the embedding of one entry of the vector.
    """

    def __init__(self, size: int, width: int):
        super().__init__(size, width, fan_in_normal(0), bias=False, kind="adam")

    def forward(self, values: Float[Tensor, "b size"]) -> Vector:
        """Map one vector per sample."""
        return super().forward(values.to(self.weight.dtype))


class ScalarCondition(nn.Module):
    """Tokens of a scalar: learned tokens, each plus the scalar's embedding."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.tokens = LearnedTokens(tokens, width, std=width**-0.5)
        self.mlp_in, self.mlp_out = scalar_mlp(width, fan_in_normal(1.0))

    def forward(self, values: Float[Tensor, " b"]) -> Tokens:
        """Embed one scalar per sample."""
        return self.tokens.weight + embed_scalar(values, self.mlp_in, self.mlp_out)[:, None]


class ClassCondition(nn.Module):
    """Tokens of a class: learned tokens, each plus the class's row. Row ``classes`` means "no class"."""

    def __init__(self, tokens: int, width: int, classes: int):
        super().__init__()
        self.tokens = LearnedTokens(tokens, width, std=width**-0.5)
        self.table = EmbeddingTable(classes + 1, width, std=width**-0.5)

    def forward(self, labels: Int64[Tensor, " b"]) -> Tokens:
        """Embed one label per sample."""
        return self.tokens.weight + self.table(labels)[:, None]


def sum_of_codes(table: nn.Embedding, style: Int64[Tensor, "b codes"], rows: int) -> Float[Tensor, "b d"]:
    """Return the sum of one row per code; each code indexes its own ``rows`` rows of the table."""
    first = torch.arange(0, style.shape[1] * rows, rows, device=style.device)
    return table(style + first).sum(1)


class StyleCondition(nn.Module):
    """Tokens of a style: learned tokens, each plus the sum of ``codes`` rows, one from every code's own table.

    Drifting's style embeddings (arXiv 2602.04770): with random codes the same noise gives several images of a class.
    """

    def __init__(self, tokens: int, width: int, codes: int, rows: int):
        super().__init__()
        self.tokens = LearnedTokens(tokens, width, std=width**-0.5)
        self.codes, self.rows = codes, rows
        self.table = EmbeddingTable(codes * rows, width, std=width**-0.5)

    def forward(self, style: Int64[Tensor, "b codes"]) -> Tokens:
        """Embed the codes of each sample, each in 0 ... rows - 1."""
        return self.tokens.weight + sum_of_codes(self.table, style, self.rows)[:, None]


def make_condition(spec: Mapping[str, Any], width: int, classes: int) -> nn.Module:
    """Return the embedding module of one condition; ValueError for an unknown kind."""
    match spec:
        case {"kind": "class", "tokens": tokens}:
            return ClassCondition(tokens, width, classes)
        case {"kind": "scalar", "tokens": tokens}:
            return ScalarCondition(tokens, width)
        case {"kind": "style", "tokens": tokens, "codes": codes, "rows": rows}:
            return StyleCondition(tokens, width, codes, rows)
    raise ValueError(f"conditions: {dict(spec)} must have the kind class, scalar or style, with its sizes")
