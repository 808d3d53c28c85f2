"""Squared errors by time: at which t they are large is what the mean over a batch hides.

The u-loss of MeanFlow spikes at large t, with du/dt, long before the run fails, while its mean and loss_v look calm.
"""

from collections.abc import Callable, Collection

import torch
from jaxtyping import Float
from torch import Tensor


class TimeBins:
    """Means of one number per row over equal bins of t in [0, 1], gathered over any number of batches.

    Bin i holds lower <= t < upper; the last one also holds t = 1. The sums stay on the device of the numbers, so that
    adding to them waits for nothing. A number that is not finite spoils its own bin and no other.

    Args:
        bins: how many.
        roots: the names whose numbers are squares of which the root of the mean is wanted.

    Raises ValueError for fewer bins than one.
    """

    def __init__(self, bins: int, roots: Collection[str] = ()):
        if bins < 1:
            raise ValueError(f"bins={bins}: at least one is needed")
        self.edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        self.labels = [f"t{low:.3g}-{high:.3g}" for low, high in self.edges.unfold(0, 2, 1).tolist()]
        self.roots = frozenset(roots)
        self.tables: dict[str, Float[Tensor, "2 bins"]] = {}  # by name: sums, and how many rows they are of

    def add(self, name: str, t: Float[Tensor, " n"], values: Float[Tensor, " n"]) -> None:
        """Put ``values`` of rows at times ``t`` into the bins of ``name``."""
        place = torch.bucketize(t, self.edges[1:-1].to(t), right=True).to(values.device, non_blocking=True)
        if name not in self.tables:
            self.tables[name] = torch.zeros(2, len(self.labels), device=values.device)
        values = values.detach().float()
        self.tables[name].index_add_(1, place, torch.stack((values, torch.ones_like(values))))

    def take(self, total: Callable[[Tensor], Tensor] = lambda tables: tables) -> dict[str, Float[Tensor, "2 bins"]]:
        """Return the tables by name, on the CPU, and begin anew; ``total`` adds them up over all devices."""
        tables, self.tables = self.tables, {}
        if not tables:
            return {}
        names = sorted(tables)  # the same order on every device
        sums = total(torch.stack([tables[name] for name in names]))
        return dict(zip(names, sums.cpu(), strict=True))

    def means(self, tables: dict[str, Float[Tensor, "2 bins"]]) -> dict[str, float]:
        """Return "name/bin" -> mean, or root of the mean; a bin that no row fell into is left out."""
        found = {}
        for name, (sums, counts) in tables.items():
            means = (sums / counts).sqrt() if name in self.roots else sums / counts
            full = zip(self.labels, means.tolist(), counts.tolist(), strict=True)
            found |= {f"{name}/{label}": mean for label, mean, count in full if count}
        return found
