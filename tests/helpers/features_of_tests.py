"""Extractors for tests: a small network with logits, and a file of Inception weights that see differences."""

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pmf_lightning.config.compose import compose
from pmf_lightning.encoders.base import Features
from pmf_lightning.evaluation.protocol import Protocol, PublishedReference
from pmf_lightning.utils import rng

WIDTH, KINDS = 6, 4


@dataclass(frozen=True)
class Tiny:
    """Six numbers and four logits of an image, by two fixed matrices of its 4x4 averages."""

    name: str = "tiny"
    features: int = WIDTH
    logits: int = KINDS
    channels: tuple = (1, 3)
    batch: int = 5
    words: str = "tiny 1"

    def check(self) -> None:
        pass

    def fingerprint(self) -> str:
        return self.words

    def open(self, device):
        mix = rng.normal("tests", "tiny", count=48 * WIDTH).view(48, WIDTH).float()
        head = rng.normal("tests", "head", count=WIDTH * KINDS).view(WIDTH, KINDS).float()

        def network(images):
            small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).expand(-1, 3, -1, -1)
            features = (small.flatten(1) @ mix).tanh()
            return Features(features, 3 * features @ head)

        return network


def protocol(**changes) -> Protocol:
    """The protocol jit in small."""
    published = PublishedReference("mu_sigma", {8: "tiny8.npz", 16: "tiny16.npz"}, "a shelf")
    rules = {
        "name": "jit",
        "quantiser": "round",
        "resize": "tensorflow1",
        "n": 50,
        "extractor": "tiny",
        "inception_splits": 5,
    }
    rules |= {"inception_shuffle": True, "kid_subsets": 7, "kid_size": 10, "neighbours": 3, "reference_images": 30}
    return Protocol(**{**rules, "seed": 2020, "reference": published, **changes})


def of_config(name: str) -> Protocol:
    """A protocol of conf/."""
    from pmf_lightning.pipeline.parts import make_part

    return make_part(compose([f"protocol={name}"], "evaluate"), "protocol")


def noise_levels(name: str, count: int, shape=(3, 8, 8)) -> torch.Tensor:
    """Whole-level images whose brightness differs."""
    pixels = rng.normal_images("tests", name, rows=torch.arange(count), shape=shape)
    light = rng.uniform("tests", name, "light", count=count).float().view(-1, 1, 1, 1)
    return (128 + 40 * pixels + 90 * (light - 0.5)).clamp(0, 255).to(torch.uint8)


def write_pngs(folder: Path, images: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{number:04d}.png")
    return folder


def write_inception(path: Path, seen: torch.Tensor) -> Path:
    """Write Inception weights in torch-fidelity's format: drawn by He's rule, normalised on the images ``seen``.

    Without the second, a deep network of random weights answers nearly the same to every image.
    """
    home = "torch_fidelity.feature_extractor_inceptionv3"
    with (
        mock.patch(f"{home}.load_state_dict_from_url", return_value={}),
        mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
        torch.random.fork_rng(devices=[]),
    ):
        inception = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    for name, weight in inception.named_parameters():
        if weight.ndim > 1:
            scale = (2 / weight[0].numel()) ** 0.5 * (4 if name.startswith("fc") else 1)
            weight.normal_(0, scale, generator=rng.generator("tests", "inception", name))
        else:
            weight.fill_(float(name.endswith("bn.weight")))
    inception.train()
    for part in inception.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        inception(seen)
    torch.save(inception.eval().state_dict(), path)
    return path


def numpy_frechet(first: np.ndarray, second: np.ndarray) -> float:
    """The Frechet distance of two sets of features by the roots of the eigenvalues of S1 S2."""
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * roots)


class Quarters(torch.nn.Module):
    """Four numbers of an image: the means of its quarters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1), 2).flatten(1)
