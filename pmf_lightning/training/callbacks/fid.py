"""FID of samples during and after training, on all ranks, with the protocol of a paper."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor

from pmf_lightning.evaluation.build import EvaluatorSetup
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.metric_settings import check_metric_settings
from pmf_lightning.evaluation.protocol import score_name
from pmf_lightning.evaluation.scores import Scores
from pmf_lightning.training.callbacks.evaluation import SampleEvaluation


@dataclass(frozen=True)
class FidSettings:
    """Settings of metrics=fid: ``n`` images every ``every_images`` training images, in batches of ``batch_size``.

    ``reference`` is a file of statistics of real images, or "data" for those of the training split. ``extra_steps`` are
    additional numbers of sampling steps, evaluated once at the end.
    """

    enabled: bool
    every_images: int
    n: int | None
    batch_size: int
    extra_steps: Sequence[int]
    reference: str | None

    def __post_init__(self) -> None:
        check_metric_settings(self, {"every_images": 1, "n": 2, "batch_size": 1})


class FIDEvaluation(SampleEvaluation):
    """Generates on all ranks and compares the features with the reference; logs FID and inception score.

    Args:
        n: images per evaluation; part of the metric's name, since the distance depends on it.
        setup: the evaluator, which all ranks open before the first step.
        others: see ``SampleEvaluation``.
    """

    rank_zero_only = False

    def __init__(self, n: int, setup: EvaluatorSetup, **others: Any):
        super().__init__(**others)
        self.n, self.protocol, self.extractor, self.evaluator_setup = n, setup.protocol, setup.extractor_name, setup
        self.evaluator: Evaluator | None = None

    @property
    def name(self) -> str:
        """The name of the distance in logs, such as "fid50k_jit"."""
        return score_name("fid", self.protocol, self.extractor, self.n)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open extractor and reference on every rank, before the first step."""
        self.evaluator = self.evaluator_setup.open(pl_module.device).without_features()

    def evaluate(self, module: LightningModule, generate: Callable[[Tensor, int], Tensor]) -> Scores:
        """Evaluate the images of ``generate(labels, first)``, split over the ranks."""
        return self.evaluator(generate, self.n, module.network.classes)

    def metrics(self, result: Scores) -> dict[str, float]:
        """Return the scores by their full names."""
        return result.named(self.protocol, self.extractor)

    def summary(self, result: Scores | None) -> dict[str, Any]:
        """Return the scores "fid" ("fd" for features other than Inception's) and "is", protocol and reference."""
        scores = {self._short: result and result.fid, "is": result and result.inception_score, "n": result and result.n}
        rules = {"metric": self.name, "protocol": self.protocol.name, "extractor": self.extractor}
        reference = self.evaluator and self.evaluator.reference.file.get("path")
        return {**scores, **rules, "reference": reference, "flags": result and ", ".join(result.flags)}

    def short_summary(self, result: Scores) -> dict[str, Any]:
        """Return the scores that exist."""
        scores = {self._short: result.fid, "is": result.inception_score}
        return {name: value for name, value in scores.items() if value is not None}

    def display_names(self) -> Mapping[str, str]:
        """Return the titles of the distance and the score."""
        score = score_name("is", self.protocol, self.extractor, self.n)
        return {self._short: f"{self.name} (lower is better)", "is": f"{score} (higher is better)"}

    @property
    def _short(self) -> str:
        return "fid" if self.extractor == "inception" else "fd"
