"""The contract of discrepancies: losses that compare the features of many generated images with those of real ones.

A new discrepancy is a frozen dataclass that derives from ``Discrepancy`` and writes ``reference`` and ``loss``, and a
file of conf/discrepancy that names it. objectives/distribution_matching.py has the training step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.utils import rng

State = Mapping[str, Tensor]


class Discrepancy:
    """Defaults of a discrepancy, which compares features in one encoder at a time.

    Attributes:
        needs: what it needs of the real features, from ``real_features.NEEDS``.
        fill: images generated before the first step, for the state; 0: none.
        metric: name of the entry of ``info`` in which progress shows: the loss itself is normalised.
        least_rows: the smallest batch that the loss can compare.
    """

    needs: ClassVar[Sequence[str]] = ("moments",)
    fill: ClassVar[int] = 0
    metric: ClassVar[str] = "distance"
    least_rows: ClassVar[int] = 1

    def reference(self, real: RealFeatures) -> Any:
        """Return what generated features are compared with; it has ``to(device)``. Raises ValueError."""
        raise NotImplementedError

    def start(self, features: Float[Tensor, "n d"]) -> State:
        """Return the state of one encoder from the features of the ``fill`` images; {}: no state."""
        return {}

    def draw(self, rows: int, seed: int, step: int) -> dict[str, Tensor]:
        """Return the random numbers of a step, the same for all encoders and devices; ``rows`` is the global batch."""
        return {}

    def loss(
        self, features: Float[Tensor, "n d"], reference: Any, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of the features of the global batch, and ``info``, detached, with the entry ``metric``.

        Only ``features`` get a gradient.
        """
        raise NotImplementedError

    def advance(self, state: State, features: Float[Tensor, "n d"]) -> State:
        """Return the state after the step that made ``features``."""
        return state


def chosen_rows(bank: Float[Tensor, "n d"], picks: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """Return the rows of ``bank`` that uniform numbers ``picks`` in [0, 1) choose, with repetition."""
    return bank[(picks * len(bank)).long().to(bank.device, non_blocking=True)]


def picks(rows: int, seed: int, step: int) -> Float[Tensor, " b"]:
    """Return one uniform number per row of the global batch, for ``chosen_rows``."""
    return rng.uniform(seed, "real rows", step, count=rows)
