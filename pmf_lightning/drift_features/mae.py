"""Drifting's features from the encoder of a masked autoencoder, and from pixels alone (arXiv 2602.04770, appendix)."""

from jaxtyping import Float
from torch import Tensor

from pmf_lightning.drift_features.summaries import SETS, as_one_vector, root_mean_square, summaries
from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.layers import patchify

EVERY_BLOCK = 2  # the paper's: the output of every second block

Images = Float[Tensor, "b channels height width"]
FeatureDict = dict[str, Float[Tensor, "b _locations _channels"]]


def raw_features(images: Images) -> FeatureDict:
    """Return "global", the pixels of an image as one vector [B, 1, H W C]: features without an encoder."""
    return {"global": as_one_vector(images)}


def mae_features(encoder: MAEEncoder, images: Images, sets: str = SETS, every_block: int = EVERY_BLOCK) -> FeatureDict:
    """Return the features of images [B,C,H,W] by the official names, each [B, locations, channels] in float32 at least.

    "global" (pixels); "norm_x", the root mean square of every channel of the patches; and ``summaries`` of conv1, of
    layer1 to layer4 and of layer{i}_blk{k} for every ``every_block``-th block: 65 in all for blocks (2, 2, 2, 2) at
    32 x 32 patches, 86 for (3, 4, 6, 3). ``sets`` chooses among the summaries. Gradients flow to the images, and to the
    encoder's weights unless these are frozen.

    Raises ValueError for images of another size or channel count than the encoder was made for, and for sets that do
    not exist.
    """
    check_images(encoder, *images.shape[1:])
    patches = patchify(images.to(encoder.stem[0].weight.dtype), encoder.patch)
    found = raw_features(images) | {"norm_x": root_mean_square(patches)}
    for name, x in encoder.maps(patches, every_block).items():
        found |= summaries(name, x, sets)
    return found


def check_images(encoder: MAEEncoder, channels: int, height: int, width: int) -> None:
    """Raise ValueError unless ``encoder`` was made for such images."""
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
