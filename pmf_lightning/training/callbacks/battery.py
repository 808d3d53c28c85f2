"""Samples in all encoders of a battery during and after training, those of the loss beside others; on all ranks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning.evaluation.battery.build import JudgeSetup
from pmf_lightning.evaluation.battery.judge import Judge
from pmf_lightning.evaluation.battery.scores import HELD_OUT, TRAINED, BatteryScores, JudgeProtocol
from pmf_lightning.evaluation.battery.watch import DisagreementWatch
from pmf_lightning.evaluation.metric_settings import check_metric_settings
from pmf_lightning.training.callbacks.evaluation import SampleEvaluation


@dataclass(frozen=True)
class BatterySettings:
    """Settings of metrics=battery: ``n`` images every ``every_images`` training images, in batches of ``batch_size``.

    ``n`` None means as many as are held out. ``extra_steps`` are additional numbers of sampling steps, evaluated once
    at the end. The others are those of ``JudgeProtocol``.
    """

    enabled: bool
    every_images: int
    n: int | None
    batch_size: int
    extra_steps: Sequence[int]
    pixels: str
    precision: str
    directions: int
    sliced_images: int

    def __post_init__(self) -> None:
        check_metric_settings(self, {"every_images": 1, "n": 2, "batch_size": 1}, may_be_null=["n"])

    @property
    def protocol(self) -> JudgeProtocol:
        """How samples are judged."""
        return JudgeProtocol(self.pixels, self.precision, self.directions, self.sliced_images)


class BatteryEvaluation(SampleEvaluation):
    """Generates on all ranks and scores the samples in all encoders of the battery.

    It warns when the encoders of the loss improve while the others get worse, three measurements in a row; the state
    of this watch is in checkpoints.

    Args:
        setup: the judge, which all ranks open before the first step.
        n: images per evaluation; None: as many as are held out.
        others: see ``SampleEvaluation``.
    """

    rank_zero_only = False

    def __init__(self, setup: JudgeSetup, n: int | None, **others: Any):
        super().__init__(**others)
        self.setup_of_judge, self._n = setup, n
        self.judge: Judge | None = None
        self.watch = DisagreementWatch()
        self.warnings = 0

    @property
    def n(self) -> int:
        """The number of images per evaluation."""
        if self._n is None:
            self._n = len(self.setup_of_judge.source.held_out())
        return self._n

    @property
    def name(self) -> str:
        """The name of the mean ratio in logs, such as "fdr3_held_out_360_float_fp32"."""
        return self.setup_of_judge.name(self.n)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the encoders and measure the real images on every rank, before the first step."""
        self.judge = self.setup_of_judge.open(pl_module.device)
        _ = self.judge.real_features

    def run(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate and log now, and warn if the loss is fooled."""
        super().run(trainer, module)
        means = (self.latest.mean("fdr", mark) for mark in (TRAINED, HELD_OUT))
        warning = self.watch.update(trainer.global_step, *means)
        if warning is not None:
            self.warnings += 1
            if trainer.is_global_zero:
                tqdm.write(f"warning: {warning}")

    def evaluate(self, module: LightningModule, generate: Callable[[Tensor, int], Tensor]) -> BatteryScores:
        """Evaluate the images of ``generate(labels, first)``, split over the ranks."""
        return self.judge(generate, self.n, module.network.classes)

    def metrics(self, result: BatteryScores) -> dict[str, float]:
        """Return the means by their full names, and the ratios of every encoder with its mark."""
        return result.named() | {self.name: result.judged} | result.by_encoder()

    def summary(self, result: BatteryScores | None) -> dict[str, Any]:
        """Return "fdr", the mean ratio that sweeps compare, the means of both marks, and the ratios by encoder."""
        names = {"fdr_trained": TRAINED, "fdr_held_out": HELD_OUT}
        found = {name: result and result.mean("fdr", mark) for name, mark in names.items()}
        others = {name: result and getattr(result, name) for name in ("n", "class_accuracy", "real_accuracy")}
        return {
            "fdr": result and result.judged,
            **found,
            "sw_r": result and result.mean("swr"),
            **others,
            "metric": self.name,
            **(result.by_encoder() if result else {}),
            "fooled_warnings": self.warnings,
        }

    def short_summary(self, result: BatteryScores) -> dict[str, Any]:
        """Return the mean ratio and the accuracy."""
        found = {"fdr": result.judged, "class_accuracy": result.class_accuracy}
        return {name: value for name, value in found.items() if value is not None}

    def display_names(self) -> Mapping[str, str]:
        """Return the title of the mean ratio."""
        return {"fdr": f"{self.name} (lower is better; real images: 1)"}

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers from before the first step, and the state of the watch."""
        return super().state_dict() | {"watch": self.watch.state_dict(), "warnings": self.warnings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the numbers from before the first step, and the state of the watch."""
        super().load_state_dict(state)
        self.watch.load_state_dict(state["watch"])
        self.warnings = state["warnings"]
