"""Early stopping on any logged number. Lightning's looks after epochs and validation, which a run by steps lacks."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from tqdm.auto import tqdm

from pmf_lightning.training.loggers.jsonl import JSONLLogger
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

DISTANCE = "fd"  # as ``monitor``: the distance of metrics=, whatever its name in the log


def early_stop(callbacks: Iterable[Callback]) -> str | None:
    """Return why early stopping ended the run, None if it did not."""
    return next((one.reason for one in callbacks if isinstance(one, EarlyStopping) and one.reason), None)


class EarlyStopping(LightningEarlyStopping):
    """Ends a run when a number of metrics.jsonl no longer improves.

    It looks every ``log_every_n_steps`` steps, and counts only new values. The run ends one step later, with its last
    checkpoint and its final evaluation. A resumed run keeps the best value and the count; its patience is that of its
    own configuration, so that a larger one continues a run that was ended.

    Args:
        monitor: a column of metrics.jsonl, or "fd" for the distance of metrics=.
        mode, patience, ...: see Lightning's class; ``patience`` counts values.

    Raises UserError when ``monitor`` should have been logged and was not.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "min",
        patience: int = 3,
        min_delta: Number = 0.0,
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: Number | None = None,
        divergence_threshold: Number | None = None,
    ):
        super().__init__(
            monitor,
            min_delta=min_delta,
            patience=patience,
            mode=mode,
            strict=strict,
            check_finite=check_finite,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
        )
        self.reason: str | None = None  # why the run was ended
        self._seen = self._due = -1  # steps

    def connect(self, distance: str | None, every_steps: int) -> None:
        """Set what the run measures: the name of its distance (None: it has none), and how often in steps."""
        if self.monitor == DISTANCE and distance is None:
            raise UserError(
                "callbacks.early_stopping.monitor=fd: metrics=none measures no distance; choose metrics=, or a column "
                "of metrics.jsonl, such as monitor=loss_u"
            )
        self.monitor = distance if self.monitor == DISTANCE else self.monitor
        self._due = every_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the checkpoint's step, which was looked at before it was saved."""
        self._seen = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Look at the last logged value. This runs before the next step because only then the log has it."""
        step = trainer.global_step
        if step == self._seen or step % trainer.log_every_n_steps:
            return
        value = trainer.strategy.broadcast(self._new_value(trainer))  # only rank 0 has the log
        self._seen = step
        if value is None:
            return
        stops, reason = self._evaluate_stopping_criteria(torch.tensor(value, dtype=torch.float64))
        if stops:
            trainer.should_stop = True
            self.reason = str(reason).removesuffix(" Signaling Trainer to stop.")
            if trainer.is_global_zero:
                tqdm.write(f"step {step}: {self.reason} The run ends after the next step.")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: Lightning's looks for ``monitor`` among its own metrics, which lack the distance."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: a run by steps has no validation."""

    def _new_value(self, trainer: Trainer) -> float | None:
        """Return the value logged since the last look, None if there is none; NaN if it was not finite."""
        if not trainer.is_global_zero:
            return None
        log = next(logger for logger in trainer.loggers if isinstance(logger, JSONLLogger))
        step, value = log.latest.get(self.monitor, (None, None))
        if step is None:
            if trainer.global_step > self._due and self.strict:
                names = ", ".join(sorted(log.latest))
                raise UserError(f"callbacks: EarlyStopping's monitor={self.monitor} is not logged; there is {names}")
            return None
        return (float("nan") if value is None else value) if step > self._seen else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore best value and count, but not the patience, which belongs to this run's configuration."""
        super().load_state_dict({**state_dict, "patience": self.patience})
