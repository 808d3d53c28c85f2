"""Base class of objectives that train a network further as a one-step generator, beside the one it was trained with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.objectives.base import Network, Objective, ObjectiveBase
from pmf_lightning.objectives.sampling_options import check_guidance
from pmf_lightning.utils.precision import Number

Image = Float[Tensor, "b c h w"]


@dataclass(frozen=True, kw_only=True)
class OneStepObjective(ObjectiveBase):
    """Defaults of an objective around the ``generator``, which still says how the network is sampled.

    Args:
        generator: the objective that the network was trained with.
        omega, t_min, t_max: guidance with which images are made in training. Only networks with these conditions use
            them: a velocity that takes two evaluations to guide is not guided (FD-loss trains JiT so).

    Raises ValueError for a generator that makes no images, and for guidance out of its range.
    """

    generator: Objective
    omega: Number
    t_min: Number
    t_max: Number

    def __post_init__(self):
        if not self.generator.samplers:
            raise ValueError(
                f"generator: {type(self.generator).__name__} makes no images, so there is nothing to train in one "
                "step; leave posttrain= out"
            )
        check_guidance(self.omega, self.t_min, self.t_max)

    def images(self, network: Network, noise: Image, y: Int64[Tensor, " b"], conditions: Mapping[str, Tensor]) -> Image:
        """Return images from scaled noise in one step, with gradient: those of ``sampling.generate`` with steps=1."""
        generator, samplers = self.generator, self.generator.samplers
        if "one_step" in samplers:
            return generator.one_step(network, noise, y, self.omega, **conditions)
        if "average" not in samplers:
            return noise - generator.ode_velocity(network, noise, 1.0, y, 1.0, self.t_min, self.t_max, **conditions)
        t, r, *guidance = (noise.new_full((len(y),), v) for v in (1, 0, self.omega, self.t_min, self.t_max))
        return noise - generator.average_velocity(network, noise, t, r, *guidance, y, **conditions)

    @property
    def heads(self) -> Sequence[str]:
        """The heads that make images; others are not trained."""
        return self.generator.sampling_heads

    @property
    def samplers(self) -> Sequence[str]:
        """The samplers of the generator."""
        return self.generator.samplers

    @property
    def noise_scale(self) -> Number:
        """The standard deviation of the generator's noise."""
        return self.generator.noise_scale

    @property
    def search_preset(self) -> str | None:
        """The generator's preset."""
        return self.generator.search_preset

    def one_step(self, network: Network, noise: Image, *conditions: Any, **more: Tensor) -> Image:
        """Return the generator's images."""
        return self.generator.one_step(network, noise, *conditions, **more)

    def average_velocity(self, network: Network, z: Image, *conditions: Any, **more: Tensor) -> Image:
        """Return the generator's u."""
        return self.generator.average_velocity(network, z, *conditions, **more)

    def ode_velocity(self, network: Network, z: Image, *conditions: Any, **more: Tensor) -> Image:
        """Return the generator's velocity of the sampling ODE."""
        return self.generator.ode_velocity(network, z, *conditions, **more)

    def nfe_per_velocity(self, t: float, omega: Number, t_min: Number, t_max: Number) -> int:
        """Return the generator's network evaluations per velocity."""
        return self.generator.nfe_per_velocity(t, omega, t_min, t_max)

    def sampling_conditions(self, seed: int, first: int, count: int) -> dict[str, Tensor]:
        """Return the generator's random conditions."""
        return self.generator.sampling_conditions(seed, first, count)

    def with_activation_checkpointing(self) -> "OneStepObjective":
        """Return the objective around the generator's for a network that recomputes its activations."""
        return replace(self, generator=self.generator.with_activation_checkpointing())
