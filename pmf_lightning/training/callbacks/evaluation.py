"""When samples are judged during training, with which weights, and where the numbers go; not what is measured."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from pmf_lightning.distributed.strategies import takes_part
from pmf_lightning.sampling.generate import OPTIONS, network_evaluations, numbered_images
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.throughput import ThroughputBar


class SampleEvaluation(Callback):
    """Measures samples of the averaged weights every so many steps and at the end of training.

    Image i comes from noise i of the run's seed, so running a check changes nothing in the training that follows.

    Args:
        every_steps: how often, besides the end.
        sampling: the options of sampling and the name of the average.
        extra_steps: other numbers of steps, measured once at the end, to ``by_steps``.
        averages, progress: the callbacks that hold the averages and the clock.
    """

    alone: ClassVar[bool]  # whether rank 0 measures by itself; else all ranks do, together

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
        self.measured_at = self._step = -1

    @property
    @abstractmethod
    def name(self) -> str:
        """What the distance is called in logs."""

    @abstractmethod
    def judge(self, module: LightningModule, generate: Callable[[Tensor, int], Tensor]) -> Any:
        """Measure what ``generate(labels, first)`` makes."""

    @abstractmethod
    def logged(self, result: Any) -> dict[str, float]:
        """Return the numbers of a result that the log takes, by name."""

    @abstractmethod
    def summary(self, result: Any | None) -> dict[str, Any]:
        """Return what summary.json says of a result; None: there is none."""

    @abstractmethod
    def brief(self, result: Any) -> dict[str, Any]:
        """Return what summary.json says of a result in another number of steps."""

    @abstractmethod
    def titles(self) -> Mapping[str, str]:
        """Return the words for entries of ``summary`` in the printed table, in front of all others."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know the step of the checkpoint, if any: the first micro-batch makes no new one."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Measure when it is time."""
        step = trainer.global_step
        due = step % self.every_steps == 0 or step == trainer.max_steps
        if step != self._step and due and (takes_part(trainer) or not self.alone):
            self.take(trainer, pl_module)
        self._step = step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure now where a run was killed between its last step and its last measurement, and then gone on with."""
        missing = trainer.global_step == trainer.max_steps != self.measured_at
        if missing and (trainer.is_global_zero or not self.alone):
            home = pl_module.device  # Lightning has taken it from the accelerator
            pl_module.to(trainer.strategy.root_device)
            self.take(trainer, pl_module)
            pl_module.to(home)

    def take(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure now, at the end also in other numbers of steps, and log it."""
        step = trainer.global_step
        with self.progress.paused():
            self.latest, self.measured_at = self.measure(module), step
            if step == trainer.max_steps:
                self.by_steps = {n: self.measure(module, steps=n) for n in self.extra_steps}
        evaluations = network_evaluations(module.objective, **{key: self.sampling[key] for key in OPTIONS})
        for logger in trainer.loggers:
            logger.log_metrics({**self.logged(self.latest), "nfe": evaluations}, step - 1)

    def measure(self, module: LightningModule, **changes: Any) -> Any:
        """Generate with the averaged weights and judge; ``changes`` of the options of sampling."""
        options = {key: self.sampling[key] for key in OPTIONS} | changes

        def images(labels: Tensor, first: int) -> Tensor:
            return numbered_images(module, labels, module.seed, first, **options)

        with self.averages.swapped(module, self.sampling["ema"]), _evaluating(module.network):
            return self.judge(module, images)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for a while; every part of it goes back to its own mode."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
