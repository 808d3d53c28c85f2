"""Quality of samples during and after training, in the metric that the data allow."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from pmf_lightning.callbacks.ema import WeightAverages
from pmf_lightning.callbacks.progress import Progress
from pmf_lightning.metrics.quality import Quality, QualityProbe
from pmf_lightning.sampling import OPTIONS, network_evaluations, numbered_images


class QualityCheck(Callback):
    """Measures samples of the averaged weights every so many steps and at the end of training.

    Image i comes from noise i of the run's seed, so running a check changes nothing in the training that follows.

    Args:
        probe: the metric.
        name: what the Frechet distance is called in the log.
        every_steps: how often, besides the end.
        sampling: the options of sampling and the name of the average.
        extra_steps: other numbers of steps, measured once at the end, to ``by_steps``.
        averages, progress: the callbacks that hold the averages and the clock.
    """

    def __init__(
        self,
        probe: QualityProbe,
        name: str,
        every_steps: int,
        sampling: dict,
        extra_steps: Sequence[int],
        averages: WeightAverages,
        progress: Progress,
    ):
        self.probe, self.name, self.every_steps = probe, name, every_steps
        self.sampling, self.averages, self.progress = sampling, averages, progress
        self.extra_steps, self.by_steps = extra_steps, {}
        self.latest: Quality | None = None
        self.measured_at = self._step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train or load the classifier before the run, not in the middle of it."""
        if trainer.is_global_zero:
            _ = self.probe.judge

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Measure when it is time."""
        step = trainer.global_step
        due = step % self.every_steps == 0 or step == trainer.max_steps
        if step != self._step and due and trainer.is_global_zero:
            self.take(trainer, pl_module)
        self._step = step

    def take(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure now, at the end also in other numbers of steps, and log it."""
        step = trainer.global_step
        with self.progress.paused():
            self.latest, self.measured_at = self.measure(module), step
            if step == trainer.max_steps:
                self.by_steps = {n: self.measure(module, steps=n) for n in self.extra_steps}
        evaluations = network_evaluations(module.objective, **{key: self.sampling[key] for key in OPTIONS})
        numbers = {self.name: self.latest.fd, "class_accuracy": self.latest.class_accuracy, "nfe": evaluations}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step - 1)

    def measure(self, module: LightningModule, **changes: Any) -> Quality:
        """Generate with the averaged weights, compare with the real images; ``changes`` of the options of sampling."""
        options = {key: self.sampling[key] for key in OPTIONS} | changes

        def images(labels: torch.Tensor, first: int) -> torch.Tensor:
            return numbered_images(module, labels, module.seed, first, **options).cpu()

        with self.averages.swapped(module, self.sampling["ema"]):
            return self.probe(images)
