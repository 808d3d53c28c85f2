"""Generator of Drifting (arXiv 2602.04770, official code): a ViT with adaLN-zero and context tokens.

The embeddings of class, guidance strength and style are summed to one vector, which modulates every block. One Linear
of this vector, plus a learned position, is each of the ``context`` tokens. Positions are initialised with sines and
cosines and are learned. RoPE uses the index in the full sequence.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pmf_lightning.models.adaln import AdaLNZeroBlock
from pmf_lightning.models.embedders import (
    LabelVector,
    LearnedTokens,
    ScalarVector,
    SinCosPositions,
    Vector,
    sum_of_codes,
)
from pmf_lightning.models.jit_vit import FinalLayer
from pmf_lightning.models.layers import AttentionKind, EmbeddingTable, Linear, RMSNorm, SwiGLU, xavier_
from pmf_lightning.models.patches import PatchEmbedding, PatchTransformer
from pmf_lightning.models.positions import HalvesRotation, rotation_1d

STD = 0.02  # initial std of the tables, alpha's MLP and the positions of the context tokens
ALPHA_SHARE = 0.02  # factor on alpha's normalised embedding


class AlphaVector(nn.Module):
    """Embedding of the guidance strength to a vector, with initial root mean square 0.02."""

    def __init__(self, width: int):
        super().__init__()
        self.vector = ScalarVector(width, STD)
        self.norm = RMSNorm(width)

    def forward(self, alpha: Float[Tensor, " b"]) -> Vector:
        """Embed one scalar per sample."""
        return ALPHA_SHARE * self.norm(self.vector(alpha))


class StyleVector(nn.Module):
    """Style embedding: the sum of ``codes`` vectors, one per code from its own ``rows`` rows of a stacked table."""

    def __init__(self, codes: int, rows: int, width: int):
        super().__init__()
        self.codes, self.rows = codes, rows
        self.table = EmbeddingTable(codes * rows, width, STD)

    def forward(self, style: Int64[Tensor, "b codes"]) -> Vector:
        """Embed the codes of each sample, each in 0 ... rows - 1."""
        return sum_of_codes(self.table, style, self.rows)


class DriftingViT(PatchTransformer):
    """Vision transformer of drifting: one trunk of adaLN-zero blocks, one head "u".

    Args:
        mlp_dim: hidden channels of every block's SwiGLU; depth: number of blocks.
        classes: labels 0 ... classes - 1; there is no label for none, since guidance uses alpha.
        context: number of condition tokens in front of the patches.
        codes, rows: number of style codes, and of values per code; codes=0: no style.
        sizes: see ``PatchTransformer``.

    Raises ValueError for incompatible sizes.
    """

    head_multiple = 2  # for one-dimensional RoPE

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_dim: int,
        depth: int,
        classes: int,
        context: int,
        codes: int,
        rows: int,
        **sizes: Any,
    ):
        super().__init__(width=width, num_heads=num_heads, classes=classes, prefix=context, **sizes)
        if width % 4:
            raise ValueError(f"width {width} is no multiple of 4, which positions of sines and cosines need")
        if context < 0 or codes < 0 or (codes and rows < 1):
            raise ValueError(
                f"context {context}, codes {codes}, rows {rows}: context and codes must be 0 or more, and rows 1 or "
                "more with codes"
            )
        self.patch_embedding = PatchEmbedding(self.channels, self.patch, width, bottleneck=None)
        self.positions = SinCosPositions(self.grid, width, torch.float64)
        self.conditions = nn.ModuleDict({"label": LabelVector(classes, width, STD), "alpha": AlphaVector(width)})
        if codes:
            self.conditions["style"] = StyleVector(codes, rows, width)
        self.to_context = Linear(width, width, xavier_) if context else None
        self.context = LearnedTokens(context, width, STD) if context else None

        def block() -> AdaLNZeroBlock:
            mlp = SwiGLU(width, mlp_dim, xavier_, bias=True)
            return AdaLNZeroBlock(width, num_heads, mlp_dim, mlp=mlp)

        self.trunk = nn.ModuleList(block() for _ in range(depth))
        self.heads = nn.ModuleDict({"u": FinalLayer(width, self.patch, self.channels, self.grid)})

    def condition(self, conditions: Mapping[str, Tensor]) -> Vector:
        """Return the sum of the condition embeddings; unknown names are ignored."""
        return sum(embed(conditions[name]) for name, embed in self.conditions.items())

    def forward(
        self,
        image: Float[Tensor, "b c h w"],
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: AttentionKind | None = None,
    ) -> dict[str, Float[Tensor, "b c h w"]]:
        """Return the field of head "u", the only one; ``conditions`` has "label", "alpha" and, with codes, "style"."""
        c = self.condition(conditions)
        x = self.patch_embedding(image) + self.positions.weight
        if self.context is not None:
            x = torch.cat((self.to_context(c)[:, None] + self.context.weight, x), dim=1)
        like = self.patch_embedding.patches.weight
        rotate = rotation_1d(self.tokens, self.head_dim, self.rope_theta, like, HalvesRotation)
        for block in self.trunk:
            x = block(x, c, rotate, attention or self.attention)
        return {name: self.heads[name](x[:, self.prefix :], c) for name in (heads or self.heads)}
