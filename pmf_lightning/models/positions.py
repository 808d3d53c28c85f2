"""Position embeddings of patches: RoPE (two-dimensional for pMF, one-dimensional for iMF), and fixed sine-cosine.

RoPE rotates each pair (a, b) of channels, by default adjacent ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.models.operations import rotate_pairs
from pmf_lightning.utils.precision import Number


class Rotation:
    """RoPE: rotates channel pairs of q or k by the angles of their token; call it on x [b, heads, n, head_dim]."""

    def __init__(self, angles: Float[Tensor, "n pairs"]):
        self.cos, self.sin = angles.cos(), angles.sin()

    def __call__(self, x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
        """Rotate the pairs (2i, 2i+1)."""
        return rotate_pairs(x, self.cos, self.sin)


class HalvesRotation(Rotation):
    """RoPE with pairs (i, i + head_dim / 2) instead of adjacent channels, for the generator of Drifting."""

    def __call__(self, x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
        """Rotate the pairs (i, i + d/2)."""
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def rotation_2d(prefix: int, grid: int, head_dim: int, theta: Number, like: Tensor) -> Rotation:
    """Build the rotation of ``prefix`` unrotated tokens followed by a grid x grid raster of patches.

    The first half of the head's channels is rotated by the row, the second by the column, at frequencies
    theta^(-2i/(head_dim/2)) (pMF, official code). Tables are computed in the dtype of ``like``, float32 at least. They
    are recomputed in every call, since a table cached under inference mode could not be used in training.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    half = head_dim // 2
    powers = torch.arange(0, half, 2, dtype=dtype, device=like.device) / half
    line = torch.arange(grid, dtype=dtype, device=like.device)[:, None] * theta**-powers
    rows = line[:, None].expand(-1, grid, -1)
    columns = line[None].expand(grid, -1, -1)
    angles = torch.cat((rows, columns), dim=-1).flatten(0, 1)
    return Rotation(torch.cat((angles.new_zeros(prefix, half), angles)))


def rotation_1d(tokens: int, head_dim: int, theta: Number, like: Tensor, kind: type[Rotation] = Rotation) -> Rotation:
    """Build the rotation of a sequence of ``tokens`` tokens, condition tokens and patches alike.

    All channels of the head are rotated by the index in the sequence, pair i at the frequency theta^(-2i/head_dim) (iMF
    and drifting, official codes). ``kind`` determines which channels form a pair.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    powers = torch.arange(0, head_dim, 2, dtype=dtype, device=like.device) / head_dim
    return kind(torch.arange(tokens, dtype=dtype, device=like.device)[:, None] * theta**-powers)


BASE = 10_000.0


def sincos_2d(grid: int, width: int, like: Tensor) -> Float[Tensor, "1 {grid}*{grid} {width}"]:
    """Return sine-cosine positions per patch in raster order: half of the channels from the column, half from the row.

    Each half is [sin(p f), cos(p f)] with f_j = 10000^(-j/(width/4)) (He et al. 2022, official MAE code). They are
    recomputed in every call, on the device of ``like`` and in its dtype, float32 at least: a buffer would have no
    values after initialisation on the meta device.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    quarter = width // 4
    powers = torch.arange(quarter, dtype=dtype, device=like.device) / quarter
    angles = torch.arange(grid, dtype=dtype, device=like.device)[:, None] * BASE**-powers
    line = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns, rows = line[None].expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)[None]
