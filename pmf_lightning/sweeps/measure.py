"""The number that a sweep compares its runs by."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig


def measured(cfg: DictConfig, summary: Mapping[str, Any]) -> float | None:
    """Return ``study.measure`` of a summary; without a study its Frechet distance, of whatever features.

    None where the run has no such number: it was stopped, or measures nothing.
    """
    if cfg.get("study"):
        value = summary.get(cfg.study.measure)
    else:
        distances = [value for name, value in summary.items() if name == "fd" or name.startswith("fid")]
        value = next((value for value in distances if isinstance(value, int | float)), None)
    return None if value is None else float(value)
