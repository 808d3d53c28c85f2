"""Drifting's features in a small classifier of the run's data: summaries of its feature maps."""

from torch import nn

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.classifier.network import Classifier
from pmf_lightning.encoders.drifting.mae import FeatureDict, Images, per_place, summaries


class ClassifierMaps(Encoder):
    """Summaries of the maps of a convolutional classifier, in place of ConvNeXt's on small data; not from a paper.

    The maps are the outputs of the convolutions i = 0, 1, 2 after their activations, normalised over channels at every
    place. The features are all places ("classifier_i"), and their mean and deviation ("classifier_i_mean", "..._std").
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier
        self.channels = (classifier.body[0].in_channels,)
        self.freeze()

    def encode(self, images: Images) -> FeatureDict:
        """Return the features of images [B,C,H,W] in [-1, 1], each [B, locations, channels]."""
        x, found = self.classifier.reduced(images.to(self.classifier.head.weight.dtype)), {}
        for layer in self.classifier.body:
            x = layer(x)
            if isinstance(layer, nn.SiLU) and x.ndim == 4:
                found |= summaries(f"classifier_{len(found) // 3}", per_place(x), "ab")
        return found

    def forward(self, images: Images) -> FeatureDict:
        """Return ``encode(images)``."""
        return self.encode(images)
