"""What the papers report of each preset, from `paper:` of its file in conf/model (or in a folder of the user)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from pmf_lightning.config.groups import choices, file_of
from pmf_lightning.utils.errors import UserError, suggestions


@dataclass(frozen=True)
class Published:
    """Data of a preset and the numbers of its paper; None if the paper does not state a number.

    Attributes:
        data: choice of data= that the preset is made for, and for which its numbers hold.
        parameters: exact number used in sampling, without the v-head, of the official network. JiT's files also hold
            a fixed table of positions, which is not counted.
        training_parameters: exact number with the v-head.
        released_parameters: exact number in the released file if it has more: iMF's contain the last layer of the
            v-head without its blocks.
        paper_parameters_m: millions of parameters, as printed in the paper.
        gmacs: 10^9 multiply-adds of one evaluation of the network, as printed in the paper, which says Gflops.
        fid, inception_score: of 50,000 images.
        evaluations: of the network per image, with guidance, as the official code counts.
        source: paper, table and length of the training.
    """

    data: str = "digits"  # as run.yaml
    parameters: int | None = None
    training_parameters: int | None = None
    released_parameters: int | None = None
    paper_parameters_m: int | None = None
    gmacs: float | int | None = None
    fid: float | int | None = None
    inception_score: float | int | None = None
    evaluations: int = 1
    source: str | None = None


def published() -> dict[str, Published]:
    """Return what is published of each preset, by the preset's name."""
    return {name: _read(file_of("model", name)) for name in choices("model")}


def published_of(name: str) -> Published | None:
    """Return what is published of one preset; None if there is no such preset."""
    return _read(file_of("model", name)) if name in choices("model") else None


def on_its_data(overrides: Sequence[str]) -> list[str]:
    """Add the data that the chosen preset is made for, unless the overrides choose data."""
    models = [override.removeprefix("model=") for override in overrides if override.startswith("model=")]
    data_chosen = any(override.startswith(("data=", "experiment=", "+experiment=")) for override in overrides)
    preset = published_of(models[-1]) if models and not data_chosen else None
    return [*overrides] if preset is None else [f"data={preset.data}", *overrides]


@cache
def _read(file: Path) -> Published:
    stated = OmegaConf.load(file).get("paper", {})
    known = [field.name for field in fields(Published)]
    if unknown := [name for name in stated if name not in known]:
        raise UserError(f"{file}: paper.{unknown[0]}: there is no such entry; {suggestions(str(unknown[0]), known)}")
    return Published(**stated)
