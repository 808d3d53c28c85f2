"""The checks that the settings of all kinds of metrics= share."""

from collections.abc import Collection, Mapping
from typing import Any

from pmf_lightning.utils.errors import UserError


def check_metric_settings(settings: Any, least: Mapping[str, int], may_be_null: Collection[str] = ()) -> None:
    """Raise UserError for settings of metrics= below their ``least`` values, and for ``extra_steps`` below 1."""
    for name, lowest in least.items():
        value = getattr(settings, name)
        if value is None and name in may_be_null:
            continue
        if value is None or value < lowest:
            raise UserError(f"metrics.{name}={'null' if value is None else value}: set it to {lowest} or more")
    if any(steps < 1 for steps in settings.extra_steps):
        raise UserError(f"metrics.extra_steps={list(settings.extra_steps)}: each is 1 or more")
