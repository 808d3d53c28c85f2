"""Settings of the class queues, and how they fit classes and devices."""

from dataclasses import dataclass

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.queues.queue_sizes import QueueSizes
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class QueueSettings:
    """Queue settings: ``labels`` per step, each with ``positives`` and ``negatives``; ``push_per_step`` new images.

    The queues have ``per_class`` images of each class and ``global_size`` of any class, in memory or in a file under
    ``folder``.
    """

    labels: int
    positives: int
    negatives: int
    push_per_step: int
    per_class: int
    global_size: int
    folder: str | None

    def __post_init__(self) -> None:
        for name in ("labels", "positives", "push_per_step", "per_class", "global_size"):
            if getattr(self, name) < 1:
                raise UserError(f"queues.{name}={getattr(self, name)}: set it to 1 or more")
        if self.negatives < 0:
            raise UserError(f"queues.negatives={self.negatives}: set it to 0 or more")
        if self.push_per_step < self.labels:
            raise UserError(
                f"queues.push_per_step={self.push_per_step}: the {self.labels} labels of a step (batch / images per "
                f"label) come from the images that it queues; set queues.push_per_step={self.labels} or more, or a "
                "smaller batch"
            )

    def sizes(self, source: DataSource) -> QueueSizes:
        """Return the sizes of the queues of ``source``: uint8 pixels, or float32 moments of latents."""
        shape, dtype = (source.channels, source.resolution, source.resolution), "uint8"
        if source.latents:
            shape, dtype = (2, *shape), "float32"
        return QueueSizes(source.classes, self.per_class, self.global_size, shape, dtype)

    def check_classes(self, classes: int, name: str) -> None:
        """Raise UserError if the data ``name`` have too few classes for the labels of a step."""
        if self.labels > classes > 1:  # with one class, each label of a step has its own positives
            raise UserError(
                f"{self.labels} labels per step (batch / images per label) of {classes} classes in data "
                f"{name}: set batch to {classes} x the images per label or less"
            )

    def micro_batches(self, devices: int) -> int:
        """Return 1, since the loss has means over all labels of a step; UserError unless labels divide over devices."""
        if self.labels % devices:
            raise UserError(
                f"{self.labels} labels (batch / images per label) do not divide over {devices} devices: "
                f"set batch to a multiple of {devices} x the images per label"
            )
        return 1
