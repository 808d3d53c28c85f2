"""Base class of callbacks that evaluate samples during training: schedule, weights and logging, but no metric."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from pmf_lightning.distributed.strategies import takes_part
from pmf_lightning.sampling.generate import OPTIONS, network_evaluations, numbered_images
from pmf_lightning.training.callbacks.early_stopping import early_stop
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.once_per_step import OncePerStep
from pmf_lightning.training.callbacks.throughput import ThroughputBar


class SampleEvaluation(OncePerStep):
    """Evaluates samples of the averaged weights every ``every_steps`` steps and at the end of training.

    A run that starts from stored weights (``init_from=``) is also evaluated before its first step; the entries of
    ``short_summary`` are then in ``before``, which checkpoints keep. Image i comes from noise i of the run's seed, so
    an evaluation does not change the training that follows.

    Args:
        every_steps: optimiser steps between evaluations.
        sampling: the sampling options and the name of the average.
        extra_steps: other numbers of sampling steps, evaluated once at the end; the results are in ``by_steps``.
        averages, progress: the callbacks of the averages and of the throughput.
    """

    rank_zero_only: ClassVar[bool]  # True: only rank 0 evaluates; False: all ranks together

    def __init__(
        self,
        every_steps: int,
        sampling: dict,
        extra_steps: Sequence[int],
        averages: EMA,
        progress: ThroughputBar,
    ):
        self.every_steps, self.sampling, self.extra_steps = every_steps, sampling, extra_steps
        self.averages, self.progress = averages, progress
        self.latest: Any = None
        self.by_steps: dict[int, Any] = {}
        self.before: dict[str, Any] = {}
        self.measured_at = -1

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the distance in logs."""

    @abstractmethod
    def evaluate(self, module: LightningModule, generate: Callable[[Tensor, int], Tensor]) -> Any:
        """Evaluate the images of ``generate(labels, first)``."""

    @abstractmethod
    def metrics(self, result: Any) -> dict[str, float]:
        """Return the numbers of a result to log, by name."""

    @abstractmethod
    def summary(self, result: Any | None) -> dict[str, Any]:
        """Return the entries of summary.json for a result; None: there is no result."""

    @abstractmethod
    def short_summary(self, result: Any) -> dict[str, Any]:
        """Return the entries of summary.json for a result at another number of sampling steps."""

    @abstractmethod
    def display_names(self) -> Mapping[str, str]:
        """Return titles for entries of ``summary``; the printed table lists these entries first."""

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers from before the first step."""
        return {"before": self.before} if self.before else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the numbers from before the first step."""
        self.before = state_dict.get("before", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the weights of ``init_from=`` as this run samples them."""
        super().on_train_start(trainer, pl_module)
        new = trainer.global_step == 0 and pl_module.init_from is not None
        if new and (takes_part(trainer) or not self.rank_zero_only):
            result = self.measure(pl_module)
            self.before = self.short_summary(result)
            for logger in trainer.loggers:
                logger.log_metrics(self.metrics(result), -1)  # Lightning's first step is 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Evaluate if due."""
        step = trainer.global_step
        due = step % self.every_steps == 0 or step == trainer.max_steps
        if self.new_step(trainer) and due and (takes_part(trainer) or not self.rank_zero_only):
            self.run(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate if the final evaluation is missing: the run was killed after its last step and then resumed."""
        missing = _is_complete(trainer) and self.measured_at != trainer.global_step
        if missing and (trainer.is_global_zero or not self.rank_zero_only):
            home = pl_module.device  # Lightning has moved it off the accelerator
            pl_module.to(trainer.strategy.root_device)
            self.run(trainer, pl_module)
            pl_module.to(home)

    def run(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate and log now; after the last step also at the extra numbers of sampling steps."""
        step = trainer.global_step
        with self.progress.paused():
            self.latest, self.measured_at = self.measure(module), step
            if _is_complete(trainer):
                self.by_steps = {n: self.measure(module, steps=n) for n in self.extra_steps}
        evaluations = network_evaluations(module.objective, **{key: self.sampling[key] for key in OPTIONS})
        for logger in trainer.loggers:
            logger.log_metrics({**self.metrics(self.latest), "nfe": evaluations}, step - 1)

    def measure(self, module: LightningModule, **changes: Any) -> Any:
        """Generate with the averaged weights and evaluate; ``changes`` overrides sampling options."""
        options = {key: self.sampling[key] for key in OPTIONS} | changes

        def images(labels: Tensor, first: int) -> Tensor:
            return numbered_images(module, labels, module.seed, first, **options)

        with self.averages.swapped(module, self.sampling["ema"]), _evaluating(module.network):
            return self.evaluate(module, images)


def _is_complete(trainer: Trainer) -> bool:
    """Whether the run ends here: after its last step, or by early stopping."""
    return trainer.global_step == trainer.max_steps or early_stop(trainer.callbacks) is not None


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Context manager for evaluation mode; afterwards every submodule gets its own mode back."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
