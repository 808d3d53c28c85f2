"""Build the perceptual distances of a run from its configuration."""

from collections.abc import Mapping
from functools import partial

from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config.compose import one_line
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.objectives.base import Distance
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.hydra_compat import instantiate


def make_features(cfg: DictConfig, source: DataSource) -> dict[str, Distance]:
    """Return the distances named in ``objective.perceptual``, built from their ``features`` configurations.

    A distance that depends on the data is ``_partial_`` in the configuration. It gets ``source`` and ``cache_dir``
    last, after the weights of all others are loaded. Raises UserError for weights that are missing or do not fit, a
    name without a configuration, a loss weight that is not positive, or data without 1 or 3 channels.
    """
    weights = cfg.objective.get("perceptual") or {}
    for name, weight in weights.items():
        if name not in cfg.features:
            raise UserError(
                f"objective.perceptual.{name}: features has no such distance; {suggestions(name, cfg.features)}"
            )
        if not weight > 0:
            raise UserError(
                f"objective.perceptual.{name}={weight}: a weight is above 0; choose perceptual=none, or another"
            )
    if weights and source.channels not in (1, 3):
        raise UserError(
            f"data.channels={source.channels}: perceptual losses compare pictures of 1 or 3; set perceptual=none"
        )
    made = {name: _make(cfg, name) for name in weights}
    return {
        name: distance(source=source, cache_dir=cfg.cache_dir) if isinstance(distance, partial) else distance
        for name, distance in made.items()
    }


def describe(cfg: DictConfig, features: Mapping[str, Distance]) -> str:
    """Return a line that lists the distances in the loss."""
    terms = (f"{cfg.objective.perceptual[name]:g} {name} ({d.side} pixels)" for name, d in features.items())
    return f"perceptual loss where t < {cfg.objective.t_thr:g}, in random crops: {', '.join(terms)}"


def _make(cfg: DictConfig, name: str) -> Distance | partial:
    try:
        return instantiate(cfg.features[name], _convert_="all")
    except (InstantiationException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        message = one_line(cause)
        raise UserError(message if isinstance(cause, UserError) else f"features.{name}: {message}") from error
