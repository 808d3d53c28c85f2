"""The shared ViT backbone: maps an image and named conditions to one raw pixel field per head.

It is independent of time, noise, guidance and losses; the objective defines the meaning of conditions and fields. The
architecture is that of iMF (arXiv 2512.02012) and pMF (arXiv 2601.22158, official codes): conditions as prepended
tokens, and a trunk that branches into heads. pMF adds a bottleneck in the patch embedding and learned positions. RoPE
uses the row and column of the patch in pMF, and the index in the sequence in iMF.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.embedders import LearnedTokens, VectorCondition, make_condition
from pmf_lightning.models.layers import AttentionKind, Block, Linear, RMSNorm, Tokens, cat_with_tangents, fan_in_normal
from pmf_lightning.models.patches import PatchEmbedding, PatchTransformer, tokens_to_image
from pmf_lightning.models.positions import Rotation, rotation_1d, rotation_2d
from pmf_lightning.utils.precision import Number

Rope = Literal["patches", "sequence"]
Positions = Literal["learned", "none"]


class Head(nn.Module):
    """Head: blocks, then removal of condition tokens, RMSNorm, zero-initialised Linear and unpatchify."""

    def __init__(self, depth: int, patch: int, channels: int, grid: int, block: Callable[[], Block], width: int):
        super().__init__()
        self.patch, self.channels, self.grid = patch, channels, grid
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm = RMSNorm(width)
        self.out = Linear(width, patch * patch * channels, fan_in_normal(0))

    def forward(self, x: Tokens, rotation: Rotation, kind: AttentionKind) -> Float[Tensor, "b c h w"]:
        """Map the trunk's tokens to a field; the values of a patch are in the order (row, column, channel)."""
        for block in self.blocks:
            x = block(x, rotation, kind)
        x = self.out(self.norm(x[:, -(self.grid**2) :]))
        return tokens_to_image(x, self.grid, self.patch, self.channels)


class ViT(PatchTransformer):
    """Vision transformer with in-context conditions, a trunk and any number of heads.

    Args:
        mlp_dim: hidden channels of every block's SwiGLU.
        depth: blocks shared by the heads; heads: blocks of each named head.
        conditions: for each name, in the order of the tokens, ``{"kind": "class" | "scalar" | "style", "tokens": n}``,
            a style also with ``codes`` and ``rows``; conditions with 0 tokens are skipped.
        classes: number of labels of class conditions; label ``classes`` means none.
        bottleneck: channels between the two patch convolutions, or None for one convolution.
        block_gain: standard deviation of block weights times sqrt(fan_in).
        rope: "patches" (two-dimensional, condition tokens unrotated) or "sequence" (one-dimensional, all tokens).
        positions: "learned" adds a learned vector to every token, "none" adds nothing.
        augment: numbers of the condition "augment", whose linear map is added to every token; 0: there is none. Where
            the condition is not given it is 0.
        sizes: see ``PatchTransformer``.

    Raises ValueError for incompatible sizes.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_dim: int,
        depth: int,
        heads: Mapping[str, int],
        conditions: Mapping[str, Mapping[str, Any]],
        classes: int,
        bottleneck: int | None,
        block_gain: Number,
        rope: str = "patches",
        positions: str = "learned",
        augment: int = 0,
        **sizes: Any,
    ):
        prefix = sum(spec["tokens"] for spec in conditions.values())
        super().__init__(width=width, num_heads=num_heads, classes=classes, prefix=prefix, **sizes)
        for name, value, kind in (("rope", rope, Rope), ("positions", positions, Positions)):
            if value not in get_args(kind):
                raise ValueError(f"{name}={value} is not one of {', '.join(get_args(kind))}")
        self.rope = rope

        def block() -> Block:
            return Block(width, num_heads, mlp_dim, fan_in_normal(block_gain))

        self.patch_embedding = PatchEmbedding(self.channels, self.patch, width, bottleneck)
        self.conditions = nn.ModuleDict(
            {name: make_condition(spec, width, classes) for name, spec in conditions.items() if spec["tokens"]}
        )
        self.positions = LearnedTokens(self.tokens, width, std=0.02) if positions == "learned" else None
        self.augment = VectorCondition(augment, width) if augment else None
        self.trunk = nn.ModuleList(block() for _ in range(depth))
        self.heads = nn.ModuleDict(
            {name: Head(depth, self.patch, self.channels, self.grid, block, width) for name, depth in heads.items()}
        )

    def _rotation(self, like: Tensor) -> Rotation:
        if self.rope == "sequence":
            return rotation_1d(self.tokens, self.head_dim, self.rope_theta, like)
        return rotation_2d(self.prefix, self.grid, self.head_dim, self.rope_theta, like)

    def forward(
        self,
        image: Float[Tensor, "b c h w"],
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: AttentionKind | None = None,
    ) -> dict[str, Float[Tensor, "b c h w"]]:
        """Return the field of every requested head (all by default); the others are not computed."""
        kind = attention or self.attention
        prefix = [embed(conditions[name]) for name, embed in self.conditions.items()]
        x = cat_with_tangents(torch.cat, (*prefix, self.patch_embedding(image)), 1)
        if self.positions is not None:
            x = x + self.positions.weight
        if self.augment is not None and "augment" in conditions:
            x = x + self.augment(conditions["augment"])[:, None]
        rotation = self._rotation(like=self.patch_embedding.patches.weight)
        for block in self.trunk:
            x = block(x, rotation, kind)
        return {name: self.heads[name](x, rotation, kind) for name in (heads or self.heads)}


def init_weights(model: nn.Module, stream: Callable[[str], torch.Generator]) -> None:
    """Initialise every weight from its own generator ``stream(full name of the weight)``.

    No global random numbers are used. Weights on the meta device are skipped.
    """
    with torch.no_grad():
        for prefix, module in model.named_modules():
            on_meta = any(weight.is_meta for weight in module.parameters(recurse=False))
            if hasattr(module, "init_weights") and not on_meta:
                module.init_weights(lambda name, prefix=prefix: stream(f"{prefix}.{name}"))
