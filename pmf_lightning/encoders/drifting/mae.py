"""Features of Drifting (arXiv 2602.04770, appendix): summaries of the maps of a masked autoencoder, and raw pixels.

There are four sets of summaries: a, every place; b, mean and standard deviation over all places; c, those of 2 x 2
cells; d, those of 4 x 4 cells. The paper's ablation uses the first two, three or all (table 3, "features"). The
official code computes all of them without names; the order of the letters is our reading of the paper.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.layers import patchify
from pmf_lightning.objectives.drifting import pixel_features
from pmf_lightning.utils.precision import at_least_float32

SETS = "abcd"

CELLS = {"c": 2, "d": 4}  # places per side

STD_EPS = 1e-6  # added under the square root

Features = Float[Tensor, "b locations channels"]


def check_sets(sets: str) -> None:
    """Raise ValueError unless ``sets`` consists of letters of SETS."""
    if not sets or set(sets) - set(SETS):
        raise ValueError(f"sets={sets}: take letters of {SETS}, such as ab, abc or abcd")


def summaries(name: str, x: Float[Tensor, "b c h w"], sets: str = SETS) -> dict[str, Float[Tensor, "b _t c"]]:
    """Return the summaries of a map by name, each [B, locations, C] in float32 or wider; places in raster order.

    "name" has all h w places; "name_mean" and "name_std" have one location; "name_mean_2" (and _4, and "name_std_2")
    have one per cell. Cells that do not tile the map are omitted. Standard deviations are sqrt(var + 1e-6), of the
    biased variance.
    """
    check_sets(sets)
    x = at_least_float32(x)
    found = {name: x.flatten(2).mT} if "a" in sets else {}
    if "b" in sets:
        mean, std = _moments(x[:, :, None, None].flatten(4))
        found |= {f"{name}_mean": mean, f"{name}_std": std}
    sizes = [size for letter, size in CELLS.items() if letter in sets and not (x.shape[2] % size or x.shape[3] % size)]
    moments = {size: _moments(_cells(x, size)) for size in sizes}
    found |= {f"{name}_mean_{size}": mean for size, (mean, _) in moments.items()}
    return found | {f"{name}_std_{size}": std for size, (_, std) in moments.items()}


def _cells(x: Tensor, size: int) -> Float[Tensor, "b c rows columns places"]:
    """Split a map into cells of size x size places."""
    cut = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [B, C, rows, size, columns, size]
    return cut.transpose(3, 4).flatten(4)


def _moments(cells: Float[Tensor, "b c rows columns places"]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the places of every cell, each [B, rows columns, C]."""
    mean = cells.mean(4, keepdim=True)
    std = ((cells - mean).square().mean(4) + STD_EPS).sqrt()
    return tuple(moment.flatten(2).mT for moment in (mean.squeeze(4), std))


def root_mean_square(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 c"]:
    """Return sqrt(mean of squares over all places + 1e-6) for every channel."""
    return (at_least_float32(x).square().mean((2, 3)) + STD_EPS).sqrt()[:, None]


def per_place(x: Float[Tensor, "b c h w"], eps: float = 1e-3) -> Float[Tensor, "b c h w"]:
    """Normalise the channels of every place: (x - mean) / (deviation + eps)."""
    x = at_least_float32(x)
    centred = x - x.mean(1, keepdim=True)
    # The square root has no gradient at exactly zero; places of a trained network are never that flat.
    deviation = centred.square().mean(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return centred / (deviation + eps)


EVERY_BLOCK = 2  # the paper's value: the output of every second block

Images = Float[Tensor, "b channels height width"]

FeatureDict = dict[str, Float[Tensor, "b _locations _channels"]]


def mae_features(encoder: MAEEncoder, images: Images, sets: str = SETS, every_block: int = EVERY_BLOCK) -> FeatureDict:
    """Return the features of images [B,C,H,W] by official name, each [B, locations, channels] in float32 or wider.

    They are "global" (pixels); "norm_x", the root mean square of every channel of the patches; and ``summaries`` of
    conv1, of layer1 to layer4 and of layer{i}_blk{k} for every ``every_block``-th block. Blocks (2, 2, 2, 2) at 32 x 32
    patches give 65, (3, 4, 6, 3) give 86. ``sets`` selects the summaries. Gradients flow to the images, and to the
    encoder's weights unless these are frozen.

    Raises ValueError for unknown sets, or images whose size or channels are not the encoder's.
    """
    check_images(encoder, *images.shape[1:])
    patches = patchify(images.to(encoder.stem[0].weight.dtype), encoder.patch)
    found = pixel_features(images) | {"norm_x": root_mean_square(patches)}
    for name, x in encoder.maps(patches, every_block).items():
        found |= summaries(name, x, sets)
    return found


def check_images(encoder: MAEEncoder, channels: int, height: int, width: int) -> None:
    """Raise ValueError unless channels and size are those of ``encoder``."""
    if channels != encoder.channels:
        raise ValueError(
            f"the feature encoder was trained on {encoder.channels} channels, these images have {channels}; set "
            f"data.channels={encoder.channels}, or take an encoder trained on such images"
        )
    if (height, width) != (encoder.resolution, encoder.resolution):
        raise ValueError(
            f"the feature encoder was trained at {encoder.resolution} x {encoder.resolution} pixels, these images have "
            f"{height} x {width}; set data.resolution={encoder.resolution}, or train an encoder at that resolution"
        )
