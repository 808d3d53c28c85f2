"""Feature encoder of Drifting: a ResNet with group norms on patches (arXiv 2602.04770, official code)."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.mae.layers import MOST_GROUPS, ConvNormReLU, GroupNorm, Map, conv, patchify
from pmf_lightning.models.patches import check_grid

STAGES = 4


class BasicBlock(nn.Module):
    """Basic block ReLU(shortcut + GN(conv(ReLU(GN(conv x))))).

    The shortcut is x, or GN(conv 1x1 x) if the shape changes.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = conv(fan_in, fan_out, 3, stride), GroupNorm(fan_out)
        self.conv2, self.norm2 = conv(fan_out, fan_out, 3), GroupNorm(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(conv(fan_in, fan_out, 1, stride), GroupNorm(fan_out))

    def forward(self, x: Map) -> Map:
        """Transform a feature map; stride 2 halves its sides, rounded up."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + y)


class Stage(nn.Module):
    """Basic blocks, the first with ``stride``, followed by a group norm."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, blocks: int):
        super().__init__()
        sizes = [(fan_in, stride)] + [(fan_out, 1)] * (blocks - 1)
        self.blocks = nn.ModuleList(BasicBlock(width, fan_out, step) for width, step in sizes)
        self.norm = GroupNorm(fan_out)

    def forward(self, x: Map) -> tuple[Map, list[Map]]:
        """Return the normalised output of the stage, and the output of every block."""
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return self.norm(x), outputs


class MAEEncoder(nn.Module):
    """ResNet encoder: conv 3x3 - GN - ReLU, then four stages of width base_channels times 1, 2, 4, 8.

    Args:
        resolution, channels: images are channels x resolution x resolution.
        patch: images are split into patch x patch pixels; the first stage works on the patch grid, each later stage on
            half the grid of the previous one.
        base_channels: width of the first convolution and stage; any positive integer.
        blocks: number of basic blocks of each of the four stages.

    Raises ValueError for incompatible sizes.
    """

    def __init__(self, *, resolution: int, channels: int, patch: int, base_channels: int, blocks: Sequence[int]):
        super().__init__()
        check_grid(resolution, patch)
        if len(blocks) != STAGES or min(blocks) < 1:
            raise ValueError(f"blocks={list(blocks)}: give four numbers of at least 1, one for each stage")
        if base_channels < 1:
            raise ValueError(f"base_channels={base_channels}: at least one is needed")
        self.resolution, self.channels, self.patch, self.grid = resolution, channels, patch, resolution // patch
        widths = [base_channels * 2**i for i in range(STAGES)]
        self.stem = ConvNormReLU(channels * patch**2, base_channels)
        self.stages = nn.ModuleList(
            Stage(fan_in, fan_out, 1 if i == 0 else 2, count)
            for i, (fan_in, fan_out, count) in enumerate(zip([base_channels, *widths], widths, blocks, strict=False))
        )
        self._refuse_dead_stages()

    def _refuse_dead_stages(self) -> None:
        """Raise ValueError if a norm has groups of a single value, whose output is always 0."""
        side = self.grid
        for i, stage in enumerate(self.stages, 1):
            width = len(stage.norm.weight)
            if side == 1 and stage.norm.groups == width:
                raise ValueError(
                    f"stage {i} has one pixel and {width} groups of one channel, so the group norm makes its output "
                    f"constant; set patch below {self.patch}, or base_channels above {MOST_GROUPS}"
                )
            side = -(-side // 2)

    def forward(self, images: Float[Tensor, "b c h w"], every_block: int | None = None) -> dict[str, Map]:
        """Return the feature maps of images by name (see ``maps``)."""
        return self.maps(patchify(images, self.patch), every_block)

    def maps(self, patches: Map, every_block: int | None = None) -> dict[str, Map]:
        """Return "conv1" and "layer1" to "layer4", then, with ``every_block`` k, "layer{i}_blk{n}" for n = k, 2k, ...

        layer{i} is the output of stage i after its last norm; a block's output is before that norm.
        """
        x = self.stem(patches)
        found, inner = {"conv1": x}, {}
        for i, stage in enumerate(self.stages, 1):
            x, outputs = stage(x)
            found[f"layer{i}"] = x
            if every_block is not None:
                inner |= {f"layer{i}_blk{n}": y for n, y in enumerate(outputs, 1) if n % every_block == 0}
        return found | inner
