"""Quality of samples during and after training on small data, measured with a classifier of the real images."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor

from pmf_lightning.evaluation.small_data import SmallDataEvaluator, SmallDataScores
from pmf_lightning.training.callbacks.evaluation import SampleEvaluation


class SmallDataEvaluation(SampleEvaluation):
    """Compares samples with the held-out images, on rank 0 only.

    Args:
        evaluator: the evaluator.
        name: the name of the Frechet distance in the log.
        others: see ``SampleEvaluation``.
    """

    rank_zero_only = True

    def __init__(self, evaluator: SmallDataEvaluator, name: str, **others: Any):
        super().__init__(**others)
        self.evaluator, self._name = evaluator, name

    @property
    def name(self) -> str:
        """The name of the distance in logs."""
        return self._name

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train or load the classifier and measure the reference before the first step."""
        if trainer.is_global_zero:
            self.evaluator.device = pl_module.device
            _ = self.evaluator.scorer

    def evaluate(self, module: LightningModule, generate: Callable[[Tensor, int], Tensor]) -> SmallDataScores:
        """Evaluate the images of ``generate(labels, first)``."""
        return self.evaluator(lambda labels, first: generate(labels, first).cpu())

    def metrics(self, result: SmallDataScores) -> dict[str, float]:
        """Return the distances, and the accuracy if there are classes."""
        found = {self.name: result.fd, **result.others, "class_accuracy": result.class_accuracy}
        return {name: value for name, value in found.items() if value is not None}

    def summary(self, result: SmallDataScores | None) -> dict[str, Any]:
        """Return all numbers except those per class."""
        names = ("fd", "fd_floor", "n", "class_accuracy", "real_accuracy")
        found = {name: result and getattr(result, name) for name in names}
        if result is None:
            return found
        return found | result.others | {f"{name}_floor": floor for name, floor in result.other_floors.items()}

    def short_summary(self, result: SmallDataScores) -> dict[str, Any]:
        """Return the distances and the accuracy."""
        return {"fd": result.fd, **result.others, "class_accuracy": result.class_accuracy}

    def display_names(self) -> Mapping[str, str]:
        """Return the titles of the distances."""
        titles = {"fd": f"{self.name} (lower is better)", "fd_floor": f"{self.name} of held-out images"}
        for name in map("fd_{}".format, self.evaluator.extractors):
            titles |= {name: f"{name} (lower is better)", f"{name}_floor": f"{name} of held-out images"}
        return titles
