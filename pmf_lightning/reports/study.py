"""The study block of a configuration: the arms that an experiment compares, and the paper's numbers and claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pmf_lightning.reports.claims import Claim, read_claims
from pmf_lightning.reports.formatting import is_number
from pmf_lightning.utils.errors import UserError

PAPERS = {
    "pMF": "https://arxiv.org/abs/2601.22158",
    "iMF": "https://arxiv.org/abs/2512.02012",
    "JiT": "https://arxiv.org/abs/2511.13720",
    "Drifting": "https://arxiv.org/abs/2602.04770",
    "FD-loss": "https://arxiv.org/abs/2604.28190",
    "RDM": "https://arxiv.org/abs/2607.02375",
}
_NEEDED = ("name", "scale", "source", "title", "arm", "measure", "arms")


@dataclass(frozen=True)
class Study:
    """A study; ``paper`` has the paper's number of each arm, in the order of its table, None if it has none."""

    name: str
    scale: str
    source: str
    title: str
    measure: str
    paper: Mapping[str, float | int | None]
    paper_measure: str
    claims: Sequence[Claim]
    note: str

    @property
    def link(self) -> str | None:
        """The URL of the paper."""
        return PAPERS.get(self.source.split(",")[0].strip())

    @property
    def paper_short(self) -> str:
        """The short name of the paper's measure: "FID-50K" of "FID-50K of latent B/2 at 256 pixels"."""
        return self.paper_measure.split(" ")[0].rstrip(",:") or "the number"


def read_study(block: Mapping[str, Any], where: str) -> Study:
    """Return the study that ``block`` describes. Raises UserError, with ``where`` as prefix, for bad input."""
    if missing := [key for key in _NEEDED if block.get(key) is None]:
        raise UserError(
            f"{where}: the study lacks {', '.join(missing)}; conf/experiment/pmf_table2/study.yaml is an example"
        )
    arms = block["arms"]
    if not isinstance(arms, Mapping) or not arms:
        raise UserError(f"{where}: study.arms={arms!r}; give each arm the paper's number, or null")
    paper = {str(arm): number for arm, number in arms.items()}
    for arm, number in paper.items():
        if number is not None and not is_number(number):
            raise UserError(f"{where}: study.arms.{arm}={number!r}; give the paper's number, or null")
    claims = read_claims(block.get("claims") or [], list(paper), f"{where}: study {block['name']}")
    texts = {key: " ".join(str(block.get(key) or "").split()) for key in ("source", "title", "paper_measure", "note")}
    return Study(
        name=str(block["name"]),
        scale=str(block["scale"]),
        measure=str(block["measure"]),
        paper=paper,
        claims=claims,
        **texts,
    )
