"""What an objective is: losses = objective(network, batch, draws, features), a pure function without weights or RNG."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images x [B,C,H,W] in [-1,1] and their labels y [B], never already dropped."""

    x: Float[Tensor, "b c h w"]
    y: Int64[Tensor, " b"]


@dataclass(frozen=True)
class Losses:
    """What an objective returns.

    ``total`` is the scalar to minimise; ``per_sample`` holds the raw sums over C, H, W of each squared error, [B];
    ``distances`` numbers per image whose mean is watched, [B], such as perceptual distances, 0 where they do not count;
    ``diagnostics`` sums over C, H, W that are watched and not minimised, [B]; ``scalars`` numbers of the whole batch
    to watch; ``fields`` the intermediate fields, [B,C,H,W], when they were asked for.
    """

    total: Float[Tensor, ""]
    per_sample: dict[str, Float[Tensor, " b"]]
    fields: dict[str, Float[Tensor, "b c h w"]] | None = None
    distances: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)
    diagnostics: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)
    scalars: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@runtime_checkable
class Network(Protocol):
    """A backbone: image and named conditions to one raw field per head."""

    classes: int

    def __call__(
        self,
        image: Tensor,
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the fields of the heads asked for."""
        ...


@runtime_checkable
class Distance(Protocol):
    """A perceptual distance between square pairs of images in [-1, 1]; ``side`` is the size it wants, in pixels."""

    side: int

    def __call__(self, generated: Tensor, real: Tensor) -> Tensor:
        """Return one distance per pair [n,C,side,side], [n], with a gradient for ``generated``."""
        ...
