"""Transformer layers with adaLN-zero (DiT): a condition vector shifts, scales and gates every branch.

JiT's form: RMSNorm, q, k and v in one matrix, SwiGLU with its two input projections in one matrix, biases everywhere.
Fused projections count as one matrix in the initialisation, as in the official code.
Modules initialise and tag their weights as those of layers.py do.
"""

from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pmf_lightning.models.dropout import Site, keyed_dropout
from pmf_lightning.models.embedders import Vector
from pmf_lightning.models.layers import (
    AttentionKind,
    Linear,
    RMSNorm,
    Tokens,
    attend,
    attention_scores,
    normal,
    xavier_,
)
from pmf_lightning.models.operations import softmax
from pmf_lightning.utils.precision import Number

Rotate = Callable[[Tensor], Tensor]
Keys = Int64[Tensor, " b"] | None  # dropout keys, one per row; None disables dropout
SITES = 3  # dropout sites of a block: attention weights, the output of attention, inside the SwiGLU


class Modulation(Linear):
    """Linear(silu(c)), zero-initialised, split into ``parts`` vectors that are broadcast over tokens."""

    def __init__(self, width: int, parts: int):
        super().__init__(width, parts * width, normal(0))
        self.parts = parts

    def forward(self, c: Vector) -> tuple[Float[Tensor, "b 1 d"], ...]:
        """Return the parts in order."""
        return super().forward(F.silu(c))[:, None].chunk(self.parts, dim=-1)


class FusedAttention(nn.Module):
    """Self-attention with q, k and v in one matrix, RMS-normalised q and k, then RoPE, and keyed dropout."""

    def __init__(self, width: int, heads: int, dropout: Number, attention_dropout: Number):
        super().__init__()
        self.heads, self.dropout, self.attention_dropout = heads, dropout, attention_dropout
        self.qkv, self.proj = Linear(width, 3 * width, xavier_), Linear(width, width, xavier_)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, x: Tokens, rotate: Rotate, kind: AttentionKind, keys: Keys, site: Site | None) -> Tokens:
        """Apply attention; ``rotate`` applies RoPE to q and k."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q)), rotate(self.k_norm(k))
        if keys is None or self.attention_dropout == 0:
            return self._out(attend(q, k, v, kind), keys, site)
        weights = keyed_dropout(softmax(attention_scores(q, k), -1), keys, site, self.attention_dropout)
        return self._out(weights.to(v.dtype) @ v, keys, site)

    def _out(self, mixed: Float[Tensor, "b heads n head_dim"], keys: Keys, site: Site | None) -> Tokens:
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        return out if keys is None else keyed_dropout(out, keys, site + 1, self.dropout)


class FusedSwiGLU(nn.Module):
    """SwiGLU w3(silu(a) * b) with (a, b) = w12 x, and dropout before w3."""

    def __init__(self, width: int, hidden: int, dropout: Number):
        super().__init__()
        self.dropout = dropout
        self.w12, self.w3 = Linear(width, 2 * hidden, xavier_), Linear(hidden, width, xavier_)

    def forward(self, x: Tokens, keys: Keys = None, site: Site | None = None) -> Tokens:
        """Map tokens to tokens."""
        a, b = self.w12(x).chunk(2, dim=-1)
        hidden = F.silu(a) * b
        return self.w3(hidden if keys is None else keyed_dropout(hidden, keys, site + 2, self.dropout))


class AdaLNZeroBlock(nn.Module):
    """adaLN-zero block: x += gate attention(scale norm(x) + shift), x += gate swiglu(scale norm(x) + shift).

    Gates, scales and shifts are computed from c. ``site`` is the index of the first of its ``SITES`` dropout sites.
    ``dropout`` applies to the output of attention and inside the SwiGLU. ``attention_dropout`` applies to the attention
    weights, which disables fused attention. ``mlp`` replaces the SwiGLU.
    """

    is_block: ClassVar = True  # for blocks_of

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        site: int = 0,
        dropout: Number = 0,
        attention_dropout: Number = 0,
        mlp: nn.Module | None = None,
    ):
        super().__init__()
        self.site = site
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.attention = FusedAttention(width, heads, dropout, attention_dropout)
        self.mlp = mlp or FusedSwiGLU(width, hidden, dropout)
        self.modulation = Modulation(width, parts=6)

    def forward(
        self,
        x: Tokens,
        c: Vector,
        rotate: Rotate,
        kind: AttentionKind,
        keys: Keys = None,
        site: Site | None = None,
    ) -> Tokens:
        """Transform the tokens; without ``keys`` there is no dropout. ``site`` is by default that of the block."""
        if keys is not None and site is None:
            site = self.site
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        seen = self.attention_norm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.attention(seen, rotate, kind, keys, site)
        seen = self.mlp_norm(x) * (1 + scale_m) + shift_m
        # Another ``mlp`` has no dropout.
        return x + gate_m * (self.mlp(seen) if keys is None else self.mlp(seen, keys, site))
