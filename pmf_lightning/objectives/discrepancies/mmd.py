"""The squared maximum mean discrepancy of RDM (arXiv 2607.02375; compare/mmd_nystrom.py:26-43) as a loss.

MMD^2 = k_gg - 2 k_gr + k_rr: exact repulsion among all generated rows, the diagonal included, and attraction to real
features through a frozen reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import EPS, check_features, self_normalised
from pmf_lightning.objectives.discrepancies.kernels import CHUNK, gram, median_bandwidth, random_rows
from pmf_lightning.objectives.discrepancies.nystrom import (
    JITTER,
    KMEANS_ROWS,
    kmeans,
    nystrom_weights,
    self_similarity,
)
from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast, to_float64


@dataclass(frozen=True)
class MMDReference:
    """Real features as a weighted sum of kernels: their mean embedding is sum_m alpha_m k(., landmarks_m).

    Args:
        landmarks: Z [M,D].
        alpha: weights [M]; they may be negative.
        bandwidth: of the Gaussian kernel, above 0, in the units of the features.
        k_rr: mean of k over pairs of real rows, a constant; it makes the value a squared distance.

    Raises ValueError for shapes that do not fit and a bandwidth that is not above 0.
    """

    landmarks: Float[Tensor, "..."]
    alpha: Float[Tensor, "..."]
    bandwidth: Number | Float[Tensor, ""]
    k_rr: Number | Float[Tensor, ""]

    def __post_init__(self):
        check_features(self.landmarks, what="MMDReference: landmarks")
        if self.alpha.shape != self.landmarks.shape[:1]:
            raise ValueError(
                f"MMDReference: alpha {list(self.alpha.shape)} for landmarks {list(self.landmarks.shape)}; one each"
            )
        for name in ("bandwidth", "k_rr"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not self.bandwidth > 0:
            raise ValueError(f"MMDReference: bandwidth={self.bandwidth}; it is above 0")

    @property
    def width(self) -> int:
        """The number of features."""
        return self.landmarks.shape[1]

    @classmethod
    def fit(
        cls,
        pool: Float[Tensor, "..."],
        landmarks: int | Float[Tensor, "..."] = 4096,
        seed: int = 0,
        *,
        bandwidth: Number | None = None,
        scale: Number = 1.0,
        jitter: Number = JITTER,
    ) -> "MMDReference":
        """Return the Nystrom reference of the real features ``pool`` [n,D] (compare/reference_math.py).

        Args:
            pool: all real features.
            landmarks: how many centroids of k-means (over at most 200,000 random rows), or the landmarks [M,D].
            seed: of all draws, which are the same on every device.
            bandwidth: of the kernel; None means ``scale`` times the median distance.
            scale: 1 on ImageNet; 0.25 ("cold") in the text-to-image bundles.
            jitter: on the diagonal of the kernel matrix of the landmarks.

        Landmarks and alpha are float64. Raises ValueError for more landmarks than rows.
        """
        check_features(pool, what="MMDReference.fit: pool")
        pool = pool.detach()
        if bandwidth is None:
            bandwidth = median_bandwidth(pool, scale=scale, seed=seed)
        if not isinstance(landmarks, Tensor):
            some = random_rows(pool, KMEANS_ROWS, seed, "k-means")
            if not 1 <= landmarks <= len(some):
                raise ValueError(f"landmarks={landmarks}: the pool has {len(some)} rows; give 1 to {len(some)}")
            landmarks = kmeans(some, landmarks, seed)
        check_features(landmarks, pool.shape[1], "MMDReference.fit: landmarks")
        alpha = nystrom_weights(pool, landmarks, bandwidth, jitter)
        k_rr = self_similarity(pool, bandwidth, seed=seed)
        return cls(to_float64(landmarks), alpha, bandwidth, k_rr)

    @classmethod
    def exact(cls, real: Float[Tensor, "..."], bandwidth: Number, k_rr: Number | None = None) -> "MMDReference":
        """Return the reference whose embedding is the mean over the rows ``real`` [n,D] themselves.

        This is RDM's ``mmd_exact``, where ``real`` is drawn anew in each step. None computes ``k_rr`` from ``real``.
        """
        check_features(real, what="MMDReference.exact")
        real = real.detach()
        k_rr = self_similarity(real, bandwidth) if k_rr is None else k_rr
        return cls(real, at_least_float32(real).new_full((len(real),), 1 / len(real)), bandwidth, k_rr)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the reference as plain tensors."""
        numbers = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("bandwidth", "k_rr")}
        return {"landmarks": self.landmarks, "alpha": self.alpha} | numbers

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "MMDReference":
        """Return the reference of a ``state_dict``."""
        return cls(**state)

    def to(self, device: torch.device | str) -> "MMDReference":
        """Return the reference on ``device``."""
        return replace(self, landmarks=self.landmarks.to(device), alpha=self.alpha.to(device))


def mmd_loss(
    features: Float[Tensor, "..."], reference: MMDReference, *, eps: Number = EPS, batch_size: int = CHUNK
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss MMD^2 / (|stopgrad MMD^2| + eps) of one encoder, and metrics to log.

    Args:
        features: features of the generated images [N,D], the only input that gets a gradient.
        reference: of real features.
        eps: absolute; near its floor MMD^2 is about 1e-4.
        batch_size: rows of the kernel matrices that are computed at once; changes memory, not the result.

    ``info`` is that of ``squared_mmd``. Raises ValueError for other features than the reference's.
    """
    raw, info = squared_mmd(features, reference, batch_size)
    return self_normalised(raw, eps), info


def squared_mmd(
    features: Float[Tensor, "..."], reference: MMDReference, batch_size: int = CHUNK
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return MMD^2 of ``features`` [N,D] to ``reference``, with a gradient for the features, and metrics to log.

    ``info``, detached and float64: ``mmd2``, the squared distance; ``k_gg`` and ``k_gr``, its repulsion and attraction.
    Real features score about (1 - k_rr) / N and not 0, because the estimate is biased; it may be slightly negative.
    Kernels have the dtype of the features, at least float32; sums are float64. ``batch_size`` is that of ``mmd_loss``.
    Raises ValueError for other features than the reference's.
    """
    check_features(features, reference.width)
    wide = at_least_float32(features)
    k_gg, k_gr, slope = _terms(wide.detach(), reference, batch_size)
    mmd2 = k_gg - 2 * k_gr + reference.k_rr
    raw = mmd2.to(wide) + ((wide - wide.detach()) * slope).sum()  # the second term is 0 and has the gradient
    return raw, {"mmd2": mmd2, "k_gg": k_gg, "k_gr": k_gr}


@torch.no_grad()
def _terms(
    features: Float[Tensor, "n d"], reference: MMDReference, batch_size: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "n d"]]:
    """Return k_gg, k_gr, and d MMD^2 / d features in closed form.

    The gradient of row i is 2 / (N bandwidth^2) times sum_m alpha_m k(g_i, Z_m) (g_i - Z_m) - mean_j k(g_i, g_j)
    (g_i - g_j). It takes the kernel matrices of the value, so nothing is recomputed or held.
    """
    shift = reference.landmarks.mean(0).to(features)
    points, marks = features - shift, reference.landmarks.to(features) - shift
    alpha, exact = reference.alpha.to(features), to_float64(reference.alpha.to(features.device))
    count, width = len(points), reference.bandwidth
    gg = gr = to_float64(points.new_zeros(()))
    slopes = []
    with no_autocast(points), full_products():
        for rows in points.split(batch_size):
            pull, push = gram(rows, marks, width), gram(rows, points, width)
            attraction, repulsion = to_float64(pull) @ exact, to_float64(push).sum(1) / count
            gr, gg = gr + attraction.sum() / count, gg + repulsion.sum() / count
            balance = (attraction - repulsion).to(rows)[:, None]
            slopes.append(rows * balance - pull @ (alpha[:, None] * marks) + push @ points / count)
    return gg, gr, torch.cat(slopes) * (2 / (count * width**2))
