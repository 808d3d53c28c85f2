"""Columns side by side: models, averages or numbers of steps at the same noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Int64
from torch import Tensor

from pmf_lightning.playground.drawing import Drawn, draw_seed, own_settings
from pmf_lightning.playground.models import MOST, PlayModel
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Column:
    """A model with one of its averages and a number of steps; all else is as the model is evaluated."""

    model: PlayModel
    average: str
    steps: int


def first_columns(models: Sequence[PlayModel]) -> list[Column]:
    """Return the columns to begin with: one a model, or for a single model its averages and numbers of steps."""
    own = [Column(model, model.average, own_settings(model.module).steps) for model in models]
    if len(own) > 1:
        return own[:MOST]
    (model,), (column,) = models, own
    several = own_settings(model.module).sampler != "one_step" and model.module.objective.samplers[0] != "one_step"
    others = [replace(column, average=name) for name in model.averages[1:]]
    steps = [replace(column, steps=number) for number in (1, 4, 2) if several and number != column.steps]
    return [column, *steps[:2], *others][:MOST]


def compare(columns: Sequence[Column], labels: Int64[Tensor, " n"], seed: int) -> list[Drawn]:
    """Sample the images of ``labels`` in every column from the same noise; image i depends on (seed, i) only.

    Raises UserError for no column or more than four, images of different sizes, or a class that a model lacks.
    """
    if not 1 <= len(columns) <= MOST:
        raise UserError(f"{len(columns)} columns: choose 1 to {MOST}")
    networks = [column.model.module.network for column in columns]
    shapes = {
        (network.channels, network.resolution): column.model.name
        for network, column in zip(networks, columns, strict=True)
    }
    if len(shapes) > 1:
        raise UserError(f"{' and '.join(shapes.values())} make images of different sizes, which no noise fits alike")
    if int(labels.max()) >= (fewest := min(network.classes for network in networks)):
        raise UserError(f"class {int(labels.max())}: a model of these columns has only {fewest} classes")
    drawn = []
    for column in columns:
        module = column.model.using(column.average)
        drawn.append(draw_seed(module, labels, seed, replace(own_settings(module), steps=column.steps)))
    return drawn
