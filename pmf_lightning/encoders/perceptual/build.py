"""Build the perceptual distances of a run from its configuration."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config.compose import one_line
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.objectives.base import Distance
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.precision import Number


def make_features(
    weights: Mapping[str, Number], networks: Mapping[str, Any], source: DataSource, cache_dir: str | None
) -> dict[str, Distance]:
    """Return the distances of a loss by name, built from their configurations.

    ``weights`` (``objective.perceptual``) names the distances; ``networks`` (``features``) holds their configurations.
    A distance that depends on the data is ``_partial_`` in the configuration. It gets ``source`` and ``cache_dir``
    last, after the weights of all others are loaded. Raises UserError for weights that are missing or do not fit, a
    name without a configuration, a loss weight that is not positive, or data without 1 or 3 channels.
    """
    for name, weight in weights.items():
        if name not in networks:
            raise UserError(
                f"objective.perceptual.{name}: features has no such distance; {suggestions(name, list(networks))}"
            )
        if not weight > 0:
            raise UserError(
                f"objective.perceptual.{name}={weight}: a weight is above 0; choose perceptual=none, or another"
            )
    if weights and source.channels not in (1, 3):
        raise UserError(
            f"data.channels={source.channels}: perceptual losses compare pictures of 1 or 3; set perceptual=none"
        )
    made = {name: _make(name, networks[name]) for name in weights}
    return {
        name: distance(source=source, cache_dir=cache_dir) if isinstance(distance, partial) else distance
        for name, distance in made.items()
    }


def describe(weights: Mapping[str, Number], t_thr: Number, features: Mapping[str, Distance]) -> str:
    """Return a line that lists the distances in the loss, their weights, and the times where they apply."""
    terms = (f"{weights[name]:g} {name} ({d.side} pixels)" for name, d in features.items())
    return f"perceptual loss where t < {t_thr:g}, in random crops: {', '.join(terms)}"


def _make(name: str, network: Any) -> Distance | partial:
    try:
        return instantiate(network, _convert_="all")
    except (InstantiationException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        message = one_line(cause)
        raise UserError(message if isinstance(cause, UserError) else f"features.{name}: {message}") from error
