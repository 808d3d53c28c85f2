"""Transformer layers with adaLN-zero (DiT): a condition vector shifts, scales and gates every branch.

JiT's form: RMSNorm, q, k and v in one matrix, SwiGLU with its two input projections in one matrix, biases everywhere.
Modules initialise and tag their weights as those of layers.py do.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pmf_lightning.models.dropout import keyed_dropout
from pmf_lightning.models.embedders import FREQUENCIES, EmbeddingTable, sinusoid
from pmf_lightning.models.layers import AttentionKind, RMSNorm, Stream, Tokens, attend
from pmf_lightning.utils.precision import Number, at_least_float32

Vector = Float[Tensor, "b d"]
Rotate = Callable[[Tensor], Tensor]
Keys = Int64[Tensor, " b"] | None  # dropout keys, one per row; None disables dropout
SITES = 3  # dropout sites of a block: attention weights, the output of attention, inside the SwiGLU


class XavierLinear(nn.Linear):
    """Linear layer with zero bias, initialised xavier-uniform, or from N(0, std^2) if ``std`` is given."""

    optim_kinds = {"weight": "muon", "bias": "adam"}

    def __init__(self, fan_in: int, fan_out: int, std: Number | None = None):
        super().__init__(fan_in, fan_out)
        self.std = std

    def reset_parameters(self) -> None:
        """Do nothing, since torch's initialisation would use the global random generator."""

    def init_weights(self, stream: Stream) -> None:
        """Initialise weight and bias. Fused projections count as one matrix, as in the official code."""
        if self.std is None:
            bound = math.sqrt(6.0 / (self.in_features + self.out_features))
            nn.init.uniform_(self.weight, -bound, bound, generator=stream("weight"))
        else:
            nn.init.normal_(self.weight, std=self.std, generator=stream("weight"))
        nn.init.zeros_(self.bias)


class NormalTable(EmbeddingTable):
    """Embedding table with one row per class, initialised from N(0, std^2)."""

    def __init__(self, rows: int, width: int, std: Number):
        super().__init__(rows, width)
        self.std = std

    def init_weights(self, stream: Stream) -> None:
        """Initialise the table."""
        nn.init.normal_(self.weight, std=self.std, generator=stream("weight"))


class LabelVector(nn.Module):
    """Class embedding to a vector; row ``classes`` means "no class"."""

    def __init__(self, classes: int, width: int, std: Number):
        super().__init__()
        self.table = NormalTable(classes + 1, width, std)

    def forward(self, labels: Int64[Tensor, " b"]) -> Vector:
        """Embed one label per sample."""
        return self.table(labels)


class ScalarVector(nn.Module):
    """Scalar embedding to a vector: sinusoid of the unscaled value, Linear, SiLU, Linear."""

    def __init__(self, width: int, std: Number):
        super().__init__()
        self.mlp_in = XavierLinear(FREQUENCIES, width, std)
        self.mlp_out = XavierLinear(width, width, std)

    def forward(self, values: Float[Tensor, " b"]) -> Vector:
        """Embed one scalar per sample."""
        # At least float32 and the precision of the weights: a half-precision sinusoid cannot resolve nearby times.
        wide = values.to(torch.promote_types(self.mlp_in.weight.dtype, torch.float32))
        waves = sinusoid(wide, FREQUENCIES).to(self.mlp_in.weight.dtype)
        return self.mlp_out(F.silu(self.mlp_in(waves)))


class Modulation(XavierLinear):
    """Linear(silu(c)), zero-initialised, split into ``parts`` vectors that are broadcast over tokens."""

    def __init__(self, width: int, parts: int):
        super().__init__(width, parts * width, std=0)
        self.parts = parts

    def forward(self, c: Vector) -> tuple[Float[Tensor, "b 1 d"], ...]:
        """Return the parts in order."""
        return super().forward(F.silu(c))[:, None].chunk(self.parts, dim=-1)


class FusedAttention(nn.Module):
    """Self-attention with q, k and v in one matrix, RMS-normalised q and k, then RoPE, and keyed dropout."""

    def __init__(self, width: int, heads: int, dropout: Number, attention_dropout: Number):
        super().__init__()
        self.heads, self.dropout, self.attention_dropout = heads, dropout, attention_dropout
        self.qkv, self.proj = XavierLinear(width, 3 * width), XavierLinear(width, width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, x: Tokens, rotate: Rotate, kind: AttentionKind, keys: Keys, site: int) -> Tokens:
        """Apply attention; ``rotate`` applies RoPE to q and k."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q)), rotate(self.k_norm(k))
        if keys is None or self.attention_dropout == 0:
            return self._out(attend(q, k, v, kind), keys, site)
        scores = at_least_float32(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        weights = keyed_dropout(scores.softmax(-1), keys, site, self.attention_dropout)
        return self._out(weights.to(v.dtype) @ v, keys, site)

    def _out(self, mixed: Float[Tensor, "b heads n head_dim"], keys: Keys, site: int) -> Tokens:
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        return out if keys is None else keyed_dropout(out, keys, site + 1, self.dropout)


class FusedSwiGLU(nn.Module):
    """SwiGLU w3(silu(a) * b) with (a, b) = w12 x, and dropout before w3."""

    def __init__(self, width: int, hidden: int, dropout: Number):
        super().__init__()
        self.dropout = dropout
        self.w12, self.w3 = XavierLinear(width, 2 * hidden), XavierLinear(hidden, width)

    def forward(self, x: Tokens, keys: Keys, site: int) -> Tokens:
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

    def forward(self, x: Tokens, c: Vector, rotate: Rotate, kind: AttentionKind, keys: Keys = None) -> Tokens:
        """Transform the tokens; without ``keys`` there is no dropout."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        seen = self.attention_norm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.attention(seen, rotate, kind, keys, self.site)
        seen = self.mlp_norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp(seen, keys, self.site)
