"""Inception of FID as an encoder with a gradient to the images."""

from pmf_lightning.encoders.base import three_channels
from pmf_lightning.encoders.battery.member import Images, Member, Vectors
from pmf_lightning.encoders.inception import Inception
from pmf_lightning.encoders.resizes import RESIZES
from pmf_lightning.utils.precision import no_autocast


class InceptionMember(Member):
    """The 2048 pooled features of torch-fidelity's port of 2015-12-05, in float32 even under autocast.

    Images in [-1, 1] are resized to 299 pixels by TensorFlow 1's bilinear rule and go in as they are: 2 x - 1 for
    colours x in [0, 1] (FD-loss, perception_util.py). FID maps levels u to (u - 128) / 128, which differs a little.

    ``weights``, ``download`` and ``resize`` are those of extractor=inception. Raises UserError if the weights are
    missing.
    """

    width = 2048

    def __init__(self, weights: str | None = None, download: bool = False, resize: str = "tensorflow1"):
        super().__init__()
        inception = Inception("inception", weights, download, 1, resize, "battery.members.inception")
        self.net = inception.network()
        self.resize, self.facts = resize, (resize,)
        self.freeze()

    def vectors(self, images: Images) -> Vectors:
        """Return the pooled features, [n, 2048]."""
        with no_autocast(images):
            x = three_channels(images).contiguous().to(next(self.net.parameters()).dtype)
            x = RESIZES[self.resize](x, self.net.INPUT_IMAGE_SIZE)
            for layer in list(self.net.children())[:-1]:  # in calling order; the last one is the classifier
                x = layer(x)
        return x.flatten(1)
