"""Inception network of FID: torch-fidelity's port of TensorFlow's of 2015-12-05, with the protocol's resize."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from pmf_lightning.encoders.base import Features, Network, three_channels
from pmf_lightning.encoders.resizes import RESIZES
from pmf_lightning.utils.cache import file_sha256, sole_writer
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.tensor_files import load_tensors

FILE = URL_INCEPTION_V3.rpartition("/")[2]  # weights-inception-2015-12-05-6726825d.pth
_LAYERS = ["2048", "logits_unbiased"]


@dataclass(frozen=True)
class Inception:
    """Inception's 2048 pooled features, and logits without bias for the inception score.

    Args:
        name: part of the names of scores.
        weights: file of weights; None: the path of torch-fidelity's download, in torch's hub cache.
        download: whether a missing file may be downloaded there.
        batch: images per forward pass.
        resize: the protocol's rule to resize to 299 pixels, a name of ``RESIZES``.
        option: key of these options in error messages.
    """

    name: str
    weights: str | None
    download: bool
    batch: int
    resize: str = "tensorflow1"
    option: str = "extractor"

    @property
    def features(self) -> int:
        """Features per image."""
        return 2048

    @property
    def logits(self) -> int:
        """Number of classes of the network."""
        return 1008

    @property
    def channels(self) -> tuple[int, ...]:
        """Supported channels: colour, or grey repeated three times."""
        return (1, 3)

    @property
    def path(self) -> Path:
        """Path of the weights."""
        if self.weights is not None:
            return Path(self.weights).expanduser()
        return Path(torch.hub.get_dir(), "checkpoints", FILE)

    def check(self) -> None:
        """Raise UserError if the weights are missing and may not be downloaded."""
        if self.batch < 1:
            raise UserError(f"{self.option}.batch={self.batch}: at least one image at a time is needed")
        if self.resize not in RESIZES:
            raise UserError(
                f"{self.option}.resize={self.resize}: no such rule; {suggestions(str(self.resize), RESIZES)}"
            )
        if self.path.is_file() or (self.weights is None and self.download):
            return
        given = f"{self.option}.weights"
        missing = given if self.weights is not None or self.option != "extractor" else "extractor=inception"
        raise UserError(
            f"{missing}: the weights of Inception are not at {self.path}; get {FILE} from torch-fidelity's release "
            f"v0.2.0 on GitHub (github.com/toshas/torch-fidelity/releases) and give its path as {given}=, or download "
            f"it with {self.option}.download=true"
        )

    def fingerprint(self) -> str:
        """Return a text that identifies the network, its weights, and any resize other than torch-fidelity's."""
        text = f"inception-v3-compat 2048 {file_sha256(self._present())[:16]}"
        return text if self.resize == "tensorflow1" else f"{text} {self.resize}"

    def network(self) -> FeatureExtractorInceptionV3:
        """Return torch-fidelity's network; UserError if the file does not hold its weights."""
        path = self._present()
        try:
            load_tensors(path)  # checked first, because torch-fidelity would run pickled code
            with torch.random.fork_rng(devices=[]):  # torch-fidelity initialises random weights before it loads
                return FeatureExtractorInceptionV3("inception-v3-compat", _LAYERS, str(path))
        except Exception as error:  # torch may raise any error for a foreign file
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise UserError(f"{self.option}.weights={path}: not the weights of Inception, {FILE} ({reason})") from error

    def open(self, device: torch.device) -> Network:
        """Return the network on ``device``; UserError if the file does not hold its weights."""
        inception = self.network().to(device)
        *body, head = inception.children()  # torch-fidelity registers the layers in calling order

        def network(images: Tensor) -> Features:
            x = (
                RESIZES[self.resize](three_channels(images).contiguous().float(), inception.INPUT_IMAGE_SIZE) - 128
            ) / 128
            for layer in body:
                x = layer(x)
            features = x.flatten(1)
            return Features(features, features.mm(head.weight.T))

        return network

    def _present(self) -> Path:
        """Return the path of the weights, downloaded first if missing and allowed."""
        self.check()
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with sole_writer(self.path):  # otherwise several ranks would write the same file
                if not self.path.is_file():
                    fetch(self.path)
        return self.path


def fetch(path: Path) -> None:
    """Download the weights to ``path`` and check their hash; UserError if that fails."""
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=FILE.split("-")[-1].split(".")[0])
    except Exception as error:  # connections fail in many ways
        raise UserError(
            f"extractor.download=true: {FILE} cannot be fetched ({type(error).__name__}: {error}); get it elsewhere "
            "and give its path as extractor.weights="
        ) from error
