"""Fixed positions of a square of patches: sines and cosines of column and row."""

import torch
from jaxtyping import Float
from torch import Tensor

BASE = 10_000.0


def sincos_2d(grid: int, width: int, like: Tensor) -> Float[Tensor, "1 {grid}*{grid} {width}"]:
    """Return a vector per patch, in raster order: half of the channels from the column, half from the row.

    Each half is [sin(p f), cos(p f)] with f_j = 10000^(-j/(width/4)) (He et al. 2022, official MAE code). Computed anew
    in every call, on the device of ``like`` and in its dtype, float32 at least: a buffer would have no values after a
    start on the meta device.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    quarter = width // 4
    powers = torch.arange(quarter, dtype=dtype, device=like.device) / quarter
    angles = torch.arange(grid, dtype=dtype, device=like.device)[:, None] * BASE**-powers
    line = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns, rows = line[None].expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)[None]
