"""Network of JiT (arXiv 2511.13720, official code): a ViT with adaLN-zero and class tokens from a middle block on.

It differs from the shared backbone of vit.py in its conditioning. Time and class form one vector that modulates every
block. From block ``context_start`` on, class tokens are also prepended to the patches.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.adaln import SITES, AdaLNZeroBlock, Keys, Modulation
from pmf_lightning.models.embedders import (
    LabelVector,
    LearnedTokens,
    ScalarVector,
    SinCosPositions,
    Vector,
    VectorCondition,
)
from pmf_lightning.models.layers import AttentionKind, Linear, RMSNorm, Tokens, normal
from pmf_lightning.models.patches import PatchEmbedding, PatchTransformer, tokens_to_image
from pmf_lightning.models.positions import rotation_2d, sincos_2d
from pmf_lightning.utils.precision import Number

Positions = Literal["sincos", "learned"]
STD = 0.02  # initial std of the class table, the time's MLP and the positions of the class tokens


class FinalLayer(nn.Module):
    """Output layer: RMSNorm, shift and scale from c, zero-initialised Linear, unpatchify. ``blocks`` is empty."""

    def __init__(self, width: int, patch: int, channels: int, grid: int):
        super().__init__()
        self.patch, self.channels, self.grid = patch, channels, grid
        self.blocks = nn.ModuleList()
        self.norm = RMSNorm(width)
        self.modulation = Modulation(width, parts=2)
        self.out = Linear(width, patch * patch * channels, normal(0))

    def forward(self, x: Tokens, c: Vector) -> Float[Tensor, "b c h w"]:
        """Map patch tokens to a field; the values of a patch are in the order (row, column, channel)."""
        shift, scale = self.modulation(c)
        x = self.out(self.norm(x) * (1 + scale) + shift)
        return tokens_to_image(x, self.grid, self.patch, self.channels)


class JiTViT(PatchTransformer):
    """Vision transformer of JiT: one trunk of adaLN-zero blocks, one head "u".

    Args:
        mlp_dim: hidden channels of every block's SwiGLU; depth: number of blocks.
        classes: number of labels; label ``classes`` means none.
        bottleneck: channels between the two patch convolutions, the first without bias; None: one convolution.
        context: number of class tokens in front of the patches; context_start: the first block with these tokens.
        dropout: after the projection of attention and inside the SwiGLU, in the middle half of the blocks;
            attention_dropout: of attention weights, in the same blocks.
        positions: "sincos", a fixed table | "learned", trained from there on (FD-loss's --learned_pe).
        augment: numbers of the condition "augment", whose linear map is added to the vector of time and class; 0: there
            is none. Where the condition is not given it is 0.
        sizes: see ``PatchTransformer``. RoPE is by row and column; class tokens are not rotated.

    Raises ValueError for incompatible sizes.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_dim: int,
        depth: int,
        classes: int,
        bottleneck: int | None,
        context: int,
        context_start: int,
        dropout: Number,
        attention_dropout: Number,
        positions: str = "sincos",
        augment: int = 0,
        **sizes: Any,
    ):
        super().__init__(width=width, num_heads=num_heads, classes=classes, prefix=context, **sizes)
        if not 0 <= context_start < depth:
            raise ValueError(f"context_start {context_start} is no block of {depth}: give 0 to {depth - 1}")
        for name, rate in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} {rate} is not in [0, 1)")
        if positions not in get_args(Positions):
            raise ValueError(f"positions={positions} is not one of {', '.join(get_args(Positions))}")
        self.context_start, self.drops = context_start, bool(dropout or attention_dropout)
        self.patch_embedding = PatchEmbedding(
            self.channels, self.patch, width, bottleneck, patch_bias=bottleneck is None
        )
        self.conditions = nn.ModuleDict({"label": LabelVector(classes + 1, width, STD), "t": ScalarVector(width, STD)})
        self.augment = VectorCondition(augment, width) if augment else None
        self.context = LearnedTokens(context, width, STD) if context else None
        self.positions = SinCosPositions(self.grid, width) if positions == "learned" else None
        middle = range(depth // 4, 3 * (depth // 4))

        def block(i: int) -> AdaLNZeroBlock:
            rates = (dropout, attention_dropout) if i in middle else (0, 0)
            return AdaLNZeroBlock(width, num_heads, mlp_dim, i * SITES, *rates)

        self.trunk = nn.ModuleList(block(i) for i in range(depth))
        self.heads = nn.ModuleDict({"u": FinalLayer(width, self.patch, self.channels, self.grid)})

    def forward(
        self,
        image: Float[Tensor, "b c h w"],
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: AttentionKind | None = None,
    ) -> dict[str, Float[Tensor, "b c h w"]]:
        """Return the field of head "u", the only one.

        ``conditions`` has "label" and "t", and may have "augment". Dropout is active exactly if it has "dropout", an
        integer key per row; the training mode has no effect. Other names are ignored.
        """
        label = self.conditions["label"](conditions["label"])
        # Our t is the fraction of noise, that of the official network the fraction of data.
        c = self.conditions["t"](1 - conditions["t"]) + label
        if self.augment is not None and "augment" in conditions:
            c = c + self.augment(conditions["augment"])
        x = self.patch_embedding(image)
        like = self.patch_embedding.patches.weight
        if self.positions is None:
            x = x + sincos_2d(self.grid, self.width, like).to(like.dtype)
        else:
            x = x + self.positions.weight
        keys = conditions.get("dropout") if self.drops else None
        x = self._trunk(x, c, label, attention or self.attention, keys)
        return {name: self.heads[name](x, c) for name in (heads or self.heads)}

    def learn_positions(self) -> None:
        """Make the table of positions a weight, with the values of the fixed one; no effect if it is one."""
        if self.positions is None:
            like = self.patch_embedding.patches.weight
            self.positions = SinCosPositions(self.grid, self.width).to(like)
            with torch.no_grad():
                self.positions.init_weights(lambda name: torch.Generator())

    def _trunk(self, x: Tokens, c: Vector, label: Vector, kind: AttentionKind, keys: Keys) -> Tokens:
        """Run the blocks, with class tokens prepended from ``context_start`` on; return the patch tokens."""
        like, patches = self.patch_embedding.patches.weight, x.shape[1]
        rotate = rotation_2d(0, self.grid, self.head_dim, self.rope_theta, like)
        for i, block in enumerate(self.trunk):
            if i == self.context_start and self.context is not None:
                x = torch.cat((label[:, None] + self.context.weight, x), dim=1)
                rotate = rotation_2d(self.prefix, self.grid, self.head_dim, self.rope_theta, like)
            site = None if keys is None else torch.full((), block.site, device=keys.device)
            x = block(x, c, rotate, kind, keys, site)
        return x[:, -patches:]
