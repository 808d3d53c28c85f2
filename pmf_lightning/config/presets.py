"""What the papers say of each preset: conf/published.yaml, the one home of their numbers."""

from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from pmf_lightning.config.compose import CONF
from pmf_lightning.utils.precision import Number


@dataclass(frozen=True)
class Published:
    """The data that a preset is made for, and its paper's numbers, None where there is none; see the file's head."""

    data: str
    parameters: int | None = None
    training_parameters: int | None = None
    released_parameters: int | None = None
    paper_parameters_m: int | None = None
    gmacs: Number | None = None
    fid: Number | None = None
    inception_score: Number | None = None
    evaluations: int = 1
    source: str | None = None


@cache
def published() -> dict[str, Published]:
    """Return the entry of every preset that has one."""
    models = OmegaConf.to_container(OmegaConf.load(CONF / "published.yaml"))["models"]
    return {name: Published(**entry) for name, entry in models.items()}
