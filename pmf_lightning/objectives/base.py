"""Interface of objectives: losses = objective(network, batch, draws, features), pure, without weights or RNG."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images x [B,C,H,W] in [-1,1] and their labels y [B], before label dropout."""

    x: Float[Tensor, "b c h w"]
    y: Int64[Tensor, " b"]


@dataclass(frozen=True)
class Losses:
    """Return value of an objective.

    ``total`` is the scalar to minimise. ``per_sample`` holds the raw sums over C, H, W of each squared error, [B].
    ``distances`` holds values per image whose mean is logged, [B], such as perceptual distances; 0 where they do not
    count. ``diagnostics`` holds sums over C, H, W that are logged and not minimised, [B]. ``scalars`` holds values of
    the full batch to log. ``fields`` holds the intermediate fields, [B,C,H,W], when they were requested.
    """

    total: Float[Tensor, ""]
    per_sample: dict[str, Float[Tensor, " b"]]
    fields: dict[str, Float[Tensor, "b c h w"]] | None = None
    distances: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)
    diagnostics: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)
    scalars: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@runtime_checkable
class Network(Protocol):
    """A backbone: maps an image and named conditions to one raw field per head."""

    classes: int

    def __call__(
        self,
        image: Tensor,
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the fields of the requested heads."""
        ...


@runtime_checkable
class Distance(Protocol):
    """A perceptual distance between pairs of square images in [-1, 1]; ``side`` is its input size in pixels."""

    side: int

    def __call__(self, generated: Tensor, real: Tensor) -> Tensor:
        """Return one distance per pair [n,C,side,side], [n], with a gradient for ``generated``."""
        ...
