"""Moments of features in float64 over all ranks, and the Frechet distance of two Gaussians."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torchmetrics import Metric
from tqdm.auto import tqdm

from pmf_lightning.distributed.collectives import chunks_of_this_rank, on_all_ranks, rank_and_world
from pmf_lightning.encoders.base import Features


class FeatureStatistics:
    """Statistics of ``n`` images: mean and unbiased covariance of their features, in float64 on the CPU.

    ``features`` [m, F] are those of the images selected by ``stored_rows``, ``logits`` [n, K] those of all images. Both
    are in the order of the images, and None if not stored. It is not a dataclass, which torchmetrics would convert.
    """

    def __init__(
        self,
        n: int,
        mu: Float64[Tensor, " f"],
        sigma: Float64[Tensor, "f f"],
        features: Float[Tensor, "m f"] | None,
        logits: Float[Tensor, "n k"] | None,
    ) -> None:
        self.n, self.mu, self.sigma, self.features, self.logits = n, mu, sigma, features, logits


class Moments(Metric):
    """Metric that computes ``FeatureStatistics`` from sums of features and of their products, reduced over the ranks.

    Args:
        features: features per image.
        logits: number of logits per image, stored for all images; 0: none.
        stored_rows: numbers of the images whose features are stored, "all" or None.
        sync: whether ``compute``, then a collective, reduces over the ranks.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(
        self, features: int, logits: int, stored_rows: Int64[Tensor, " m"] | str | None, sync: bool = True
    ) -> None:
        super().__init__(compute_with_cache=False, sync_on_compute=sync)
        self.logits = logits
        self.stored_rows = stored_rows.sort().values if isinstance(stored_rows, Tensor) else stored_rows
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(features, features, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("rows", "vectors", "logit_parts", "logit_rows"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.update(
            Features(torch.zeros(0, features), torch.zeros(0, logits)), 0
        )  # so that ranks without a chunk can be reduced

    def update(self, outputs: Features, first: int) -> None:
        """Add images number ``first``, ``first + 1``, ..."""
        wide = outputs.features.double()
        self.count.add_(len(wide))  # in place: an assignment to a metric takes longer than the sum
        self.total.add_(wide.sum(0))
        self.products.addmm_(wide.T, wide)
        if self.stored_rows is not None:
            chosen = self._chosen(first, len(wide)).to(wide.device)
            self.rows.append(chosen)
            self.vectors.append(outputs.features[chosen - first])
        if self.logits:
            self.logit_rows.append(torch.arange(first, first + len(wide), device=wide.device))
            self.logit_parts.append(outputs.logits)

    def _chosen(self, first: int, count: int) -> Int64[Tensor, " c"]:
        """Return the numbers of the stored images among ``count`` from number ``first``."""
        if isinstance(self.stored_rows, str):
            return torch.arange(first, first + count)
        start, end = torch.searchsorted(self.stored_rows, torch.tensor([first, first + count])).tolist()
        return self.stored_rows[start:end]

    def compute(self) -> FeatureStatistics:
        """Return the statistics over all ranks; the covariance divides by n - 1, like np.cov."""
        n, mu = int(self.count), self.total / self.count
        sigma = (self.products - n * torch.outer(mu, mu)) / (n - 1)
        return FeatureStatistics(
            n,
            mu.cpu(),
            ((sigma + sigma.T) / 2).cpu(),
            _in_order(self.vectors, self.rows) if self.stored_rows is not None else None,
            _in_order(self.logit_parts, self.logit_rows) if self.logits else None,
        )


def _in_order(values: list[Tensor] | Tensor, rows: list[Tensor] | Tensor) -> Tensor:
    values, rows = (torch.cat(x) if isinstance(x, list) else x for x in (values, rows))
    return values[rows.argsort()].cpu()


def measured_in_chunks(
    encode: Callable[[int, int], Mapping[str, Features]],
    moments: Mapping[str, Moments],
    n: int,
    batch_size: int,
    title: str,
) -> dict[str, FeatureStatistics]:
    """Return statistics by encoder of images number 0 to n - 1, in chunks split over the ranks; all must call it.

    ``encode(first, end)`` returns the features by encoder of images number ``first`` to ``end - 1``, which are added
    to ``moments``. ``title`` is that of the progress bar.
    """
    rank, world = rank_and_world()
    bar = tqdm(total=n, desc=title, unit="image", disable=rank > 0 or n <= batch_size, leave=False)

    def run() -> None:
        for first, end in chunks_of_this_rank(n, batch_size):
            for name, features in encode(first, end).items():
                moments[name].update(features, first)
            bar.update(min((end - first) * world, n - bar.n))

    with bar:
        on_all_ranks(run)
    return {name: one.compute() for name, one in moments.items()}


TINY = 1e-12  # ratio of smallest to largest eigenvalue up to which a covariance counts as singular


class Gaussian:
    """Gaussian with mean [F] and covariance [F, F], which caches the covariance's spectrum and root."""

    def __init__(self, mu: Float64[Tensor, " f"], sigma: Float64[Tensor, "f f"]) -> None:
        self.mu, self.sigma = mu, sigma

    @cached_property
    def spectrum(self) -> tuple[Float64[Tensor, " f"], Float64[Tensor, "f f"]]:
        """Eigenvalues (ascending) and eigenvectors of the covariance."""
        return tuple(torch.linalg.eigh(self.sigma))

    @cached_property
    def root(self) -> Float64[Tensor, "f f"]:
        """The positive square root of the covariance; eigenvalues that are negative by rounding count as 0."""
        values, vectors = self.spectrum
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    @property
    def near_singular(self) -> bool:
        """Whether the smallest eigenvalue of the covariance is at most TINY times the largest."""
        values = self.spectrum[0]
        return bool(values[0] <= TINY * values[-1])

    def distance(self, mu: Float64[Tensor, " f"], sigma: Float64[Tensor, "f f"]) -> float:
        """Return ``|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)`` (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

        The last trace is the sum of the square roots of the eigenvalues of ``S1^(1/2) S2 S1^(1/2)``. This matrix is
        symmetric, so they are real; those that are negative by rounding count as 0.
        """
        product = self.root @ sigma @ self.root
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
        return float((self.mu - mu).square().sum() + self.sigma.trace() + sigma.trace() - 2 * cross)
