"""Published numbers of each preset, from conf/published.yaml."""

from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from pmf_lightning.config.compose import CONF
from pmf_lightning.utils.precision import Number


@dataclass(frozen=True)
class Published:
    """Data set of a preset and the numbers of its paper (None if not reported); see the head of published.yaml."""

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
    """Return the entries of published.yaml by preset."""
    models = OmegaConf.to_container(OmegaConf.load(CONF / "published.yaml"))["models"]
    return {name: Published(**entry) for name, entry in models.items()}
