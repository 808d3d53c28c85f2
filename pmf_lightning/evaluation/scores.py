"""Compute scores: the Frechet distance from moments, the others by torch-fidelity's functions on features."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from pmf_lightning.evaluation.moments import FeatureStatistics, Gaussian
from pmf_lightning.evaluation.protocol import Protocol, score_name
from pmf_lightning.evaluation.references import Reference

ROWS = 2000  # rows per block of distances in precision and recall, which limits the memory
FLAGS = {
    "rank-deficient": "fewer images than features + 1: the covariance is singular, the distance biased upwards",
    "reference-rank-deficient": "as rank-deficient, of the reference",
    "near-singular": "a covariance is nearly singular: the last digits of the distance are rounding",
    "not-full-count": "not the protocol's number of images: not comparable with published numbers",
    "unbalanced-labels": "the number of images is no multiple of the number of classes",
    "small-kid-subsets": "fewer images than a subset of the kernel distance should have",
    "few-reference-features": "fewer real images than the protocol's for precision and recall",
    "few-inception-images": "fewer images than parts of the inception score, which is left out",
    "other-reference": "the reference does not have the name of the protocol's published file",
    "other-extractor": "not the protocol's features",
}


@dataclass(frozen=True)
class Scores:
    """Scores of ``n`` images; a score is None if it cannot be computed (no logits, no reference features).

    ``fid`` is the Frechet distance in the extractor's features; it is an FID only with Inception. ``flags`` are keys of
    ``FLAGS``, which explains them.
    """

    fid: float
    inception_score: float | None
    inception_score_std: float | None
    kid: float | None
    kid_std: float | None
    precision: float | None
    recall: float | None
    n: int
    flags: tuple[str, ...]

    def named(self, protocol: Protocol, extractor: str) -> dict[str, float]:
        """Return the available scores by full name, such as "fid50k_jit"."""
        short = {"fid": "fid", "is": "inception_score", "kid": "kid", "precision": "precision", "recall": "recall"}
        named = {score_name(s, protocol, extractor, self.n): getattr(self, field) for s, field in short.items()}
        return {name: value for name, value in named.items() if value is not None}

    def as_dict(self) -> dict:
        """Return plain data for JSON."""
        return asdict(self) | {"flags": list(self.flags)}


def score(
    measured: FeatureStatistics,
    reference: Reference,
    real: Float[Tensor, "m f"] | None,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    compared: Float[Tensor, "k f"] | None = None,
) -> Scores:
    """Compute the scores of ``measured`` against a reference and features of ``real`` images, by a protocol.

    Distances between features are computed on ``device``, in float64. Precision and recall use ``compared`` if given,
    otherwise ``real``. KID, precision and recall need ``measured.features`` and these real features.
    """
    compared = real if compared is None else compared
    flags, fake = list(_moment_flags(measured, reference)), measured.features
    isc = _inception(measured.logits, protocol, flags)
    kid = {} if real is None or fake is None else _kid(fake, real, protocol, flags)
    prc = {} if compared is None or fake is None else _precision_recall(fake, compared, protocol, flags, device)
    return Scores(
        fid=reference.gaussian.distance(measured.mu, measured.sigma),
        inception_score=isc.get(KEY_METRIC_ISC_MEAN),
        inception_score_std=isc.get(KEY_METRIC_ISC_STD),
        kid=kid.get(KEY_METRIC_KID_MEAN),
        kid_std=kid.get(KEY_METRIC_KID_STD),
        precision=prc.get(KEY_METRIC_PRECISION),
        recall=prc.get(KEY_METRIC_RECALL),
        n=measured.n,
        flags=tuple(flags),
    )


def _moment_flags(measured: FeatureStatistics, reference: Reference) -> Iterator[str]:
    few = measured.n <= len(measured.mu)
    if few:
        yield "rank-deficient"
    if reference.n is not None and reference.n <= len(reference.mu):
        yield "reference-rank-deficient"
    if few or reference.gaussian.near_singular or Gaussian(measured.mu, measured.sigma).near_singular:
        yield "near-singular"


def _inception(logits: Float[Tensor, "n k"] | None, protocol: Protocol, flags: list[str]) -> dict[str, float]:
    if logits is None:
        return {}
    if len(logits) < protocol.inception_splits:
        flags.append("few-inception-images")
        return {}
    return isc_features_to_metric(logits, protocol.inception_splits, protocol.inception_shuffle, protocol.seed)


def _kid(
    fake: Float[Tensor, "n f"], real: Float[Tensor, "m f"], protocol: Protocol, flags: list[str]
) -> dict[str, float]:
    size = min(protocol.kid_size, len(fake), len(real))
    if size < protocol.kid_size:
        flags.append("small-kid-subsets")
    subsets = {"kid_subsets": protocol.kid_subsets, "kid_subset_size": size, "rng_seed": protocol.seed}
    return kid_features_to_metric(fake, real, **subsets, verbose=False)


def _precision_recall(
    fake: Float[Tensor, "n f"], real: Float[Tensor, "m f"], protocol: Protocol, flags: list[str], device
) -> dict[str, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991)."""
    real = real[: protocol.reference_images]
    if len(real) < protocol.reference_images:
        flags.append("few-reference-features")
    if min(len(fake), len(real)) <= protocol.neighbours:
        return {}
    sets = (part.to(device).double() for part in (fake, real))
    options = {"prc_neighborhood": protocol.neighbours, "prc_batch_size": ROWS, "save_cpu_ram": True}
    return prc_features_to_metric(*sets, **options, verbose=False)
