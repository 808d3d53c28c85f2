"""Moments of features in float64 over all ranks, by torchmetrics; and the features that other scores need."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torchmetrics import Metric

from pmf_lightning.evaluation.features import Features


class Measured:
    """What is known of ``n`` images: mean and unbiased covariance of their features, in float64 on the CPU.

    ``features`` [m, F] are those of the images that ``kept`` asked for, ``logits`` [n, K] of all; both in the order of
    the images, None where they were not kept. No dataclass: torchmetrics would take it apart.
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
    """Sums of features and of their products, which torchmetrics adds over the ranks; ``compute`` gives ``Measured``.

    Args:
        features: numbers per image.
        logits: classes whose logits are kept, of all images; 0: none.
        kept: numbers of the images whose features are kept; "all", or None.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self, features: int, logits: int, kept: Int64[Tensor, " m"] | str | None) -> None:
        super().__init__(compute_with_cache=False)
        self.logits, self.kept = logits, kept
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(features, features, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("rows", "vectors", "answers", "answer_rows"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.update(Features(torch.zeros(0, features), torch.zeros(0, logits)), 0)  # a rank without a chunk joins in

    def update(self, seen: Features, first: int) -> None:
        """Add images number ``first``, ``first + 1``, ..."""
        wide = seen.features.double()
        self.count += len(wide)
        self.total += wide.sum(0)
        self.products += wide.T @ wide
        rows = torch.arange(first, first + len(wide), device=wide.device)
        if self.kept is not None:
            chosen = rows >= 0 if isinstance(self.kept, str) else torch.isin(rows, self.kept.to(rows.device))
            self.rows.append(rows[chosen])
            self.vectors.append(seen.features[chosen])
        if self.logits:
            self.answer_rows.append(rows)
            self.answers.append(seen.logits)

    def compute(self) -> Measured:
        """Return what was measured over all ranks; the covariance divides by n - 1, as np.cov does."""
        n, mu = int(self.count), self.total / self.count
        sigma = (self.products - n * torch.outer(mu, mu)) / (n - 1)
        return Measured(
            n,
            mu.cpu(),
            ((sigma + sigma.T) / 2).cpu(),
            _in_order(self.vectors, self.rows) if self.kept is not None else None,
            _in_order(self.answers, self.answer_rows) if self.logits else None,
        )


def _in_order(values: list[Tensor] | Tensor, rows: list[Tensor] | Tensor) -> Tensor:
    values, rows = (torch.cat(x) if isinstance(x, list) else x for x in (values, rows))
    return values[rows.argsort()].cpu()
