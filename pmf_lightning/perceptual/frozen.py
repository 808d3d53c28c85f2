"""What all perceptual distances share: a network that is never trained, and images of one channel for three."""

from jaxtyping import Float
from torch import Tensor, nn

Square = Float[Tensor, "n c side side"]
Distances = Float[Tensor, " n"]


class FrozenDistance(nn.Module):
    """A distance between pairs of images, [n,C,side,side] in [-1, 1] with C = 1 or 3, in the features of a network.

    ``distance(generated, real)`` gives one number per pair, 0 for equal images, with a gradient for ``generated`` and
    none for weights. Once frozen it stays in evaluation mode, whatever module it may end up in.
    """

    def __init__(self, side: int):
        super().__init__()
        if side < 1:
            raise ValueError(f"side={side}: crops have at least 1 pixel")
        self.side = side

    def freeze(self) -> None:
        """Take the weights out of training, for good."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenDistance":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, generated: Square, real: Square) -> Distances:
        """Return one distance per pair."""
        raise NotImplementedError


def three_channels(images: Square, like: Tensor) -> Float[Tensor, "n 3 side side"]:
    """Return images as the networks of photographs take them: grey ones three times, in the dtype of ``like``."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images have {images.shape[1]} channels; perceptual distances know 1 or 3")
    return images.expand(-1, 3, -1, -1).to(like.dtype)
