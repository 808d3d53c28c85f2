"""DINOv2 features (arXiv 2304.07193), whose distances agree better with human judgement (arXiv 2306.04675)."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from pmf_lightning.encoders.base import Features, Network, three_channels
from pmf_lightning.utils.cache import file_sha256, sole_writer
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.state_names import unwrapped
from pmf_lightning.utils.tensor_files import load_tensors

PROJECT, SIDE = "facebookresearch/dinov2", 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


@dataclass(frozen=True)
class DinoV2:
    """Class token of a DINOv2 from torch hub, on images resized to 224 pixels by torch-fidelity.

    Args:
        name: part of the names of scores.
        model: name of the model in the hub, such as "dinov2_vitl14".
        features: number of features of that model.
        repository: folder with the project's code (its hubconf.py is run); None: torch's hub cache.
        weights: file of weights; None: torch's hub cache.
        download: whether the hub may download what is missing.
        batch: images per forward pass.
    """

    name: str
    model: str
    features: int
    repository: str | None
    weights: str | None
    download: bool
    batch: int
    logits: int = 0

    @property
    def channels(self) -> tuple[int, ...]:
        """Supported channels: colour, or grey repeated three times."""
        return (1, 3)

    @property
    def code(self) -> Path:
        """Path of the project's code."""
        cached = Path(torch.hub.get_dir(), PROJECT.replace("/", "_") + "_main")
        return cached if self.repository is None else Path(self.repository).expanduser()

    @property
    def path(self) -> Path:
        """Path of the weights."""
        cached = Path(torch.hub.get_dir(), "checkpoints", f"{self.model}_pretrain.pth")
        return cached if self.weights is None else Path(self.weights).expanduser()

    def check(self) -> None:
        """Raise UserError if code or weights are missing and may not be downloaded."""
        if self.batch < 1:
            raise UserError(f"extractor.batch={self.batch}: at least one image at a time is needed")
        if self.download and self.repository is None and self.weights is None:
            return
        for key, place, what in (
            ("repository", self.code / "hubconf.py", f"the code of github.com/{PROJECT}"),
            ("weights", self.path, f"{self.model}_pretrain.pth, listed in the README of github.com/{PROJECT}"),
        ):
            if not place.is_file():
                raise UserError(
                    f"extractor.{key}={getattr(self, key)}: {place} does not exist; get {what}, and give its path as "
                    f"extractor.{key}=, or let the hub download code and weights with extractor.download=true"
                )

    def fingerprint(self) -> str:
        """Return a text that identifies the network and its weights."""
        self._fetch()
        return f"{self.model} {SIDE} {file_sha256(self.path)[:16]}"

    def open(self, device: torch.device) -> Network:
        """Return the network on ``device``; UserError if code and weights do not match."""
        self._fetch()
        model = self._load().requires_grad_(False).eval().to(device)
        mean, std = (torch.tensor(x, device=device).view(3, 1, 1) * 255 for x in (_MEAN, _STD))

        def network(images: Tensor) -> Features:
            pixels = three_channels(images).contiguous().float()
            small = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(SIDE, SIDE), align_corners=False)
            return Features(model((small - mean) / std), None)

        return network

    def _load(self) -> nn.Module:
        os.environ["XFORMERS_DISABLED"] = "1"  # plain attention, as in torch-fidelity
        try:
            state = load_tensors(self.path)
            with torch.random.fork_rng(devices=[]):
                model = torch.hub.load(str(self.code), self.model, source="local", pretrained=False, verbose=False)
            model.load_state_dict(unwrapped(state))
        except Exception as error:  # foreign code and files may raise any error
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise UserError(f"extractor.weights={self.path}: not the weights of {self.model} ({reason})") from error
        return model

    def _fetch(self) -> None:
        self.check()
        if self.path.is_file() and (self.code / "hubconf.py").is_file():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.path):  # otherwise several ranks would write the same files
            try:
                torch.hub.load(PROJECT, self.model, trust_repo=True, verbose=False)
            except Exception as error:  # connections fail in many ways
                raise UserError(
                    f"extractor.download=true: {self.model} cannot be fetched ({type(error).__name__}: {error}); get "
                    "code and weights elsewhere and give extractor.repository= and extractor.weights="
                ) from error
