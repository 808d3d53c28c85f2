"""Build the perceptual distances of a run from its configuration."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config.compose import one_line
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.objectives.base import Distance, EncoderRequest
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.hydra_compat import instantiate


def make_distances(
    request: EncoderRequest, networks: Mapping[str, Any], source: DataSource, cache_dir: str | None
) -> dict[str, Distance]:
    """Return the distances that an objective requests by name, built from the configurations ``networks``.

    A distance that depends on the data is ``_partial_`` in the configuration. It gets ``source`` and ``cache_dir``
    last, after the weights of all others are loaded. Raises UserError for weights that are missing or do not fit, a
    name without a configuration, or data without 1 or 3 channels.
    """
    group = request.group
    for name in request.names:
        if name not in networks:
            raise UserError(f"{group}.{name}: there is no such distance; {suggestions(name, list(networks))}")
    if source.channels not in (1, 3):
        raise UserError(
            f"data.channels={source.channels}: perceptual losses compare pictures of 1 or 3; set perceptual=none"
        )
    made = {name: _make(group, name, networks[name]) for name in request.names}
    return {
        name: distance(source=source, cache_dir=cache_dir) if isinstance(distance, partial) else distance
        for name, distance in made.items()
    }


def _make(group: str, name: str, network: Any) -> Distance | partial:
    try:
        return instantiate(network, _convert_="all")
    except (InstantiationException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        message = one_line(cause)
        raise UserError(message if isinstance(cause, UserError) else f"{group}.{name}: {message}") from error
