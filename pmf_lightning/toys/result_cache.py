"""Cache of the finished arms of a study, so that a stopped study resumes, and the loop over all arms."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_write, digest
from pmf_lightning.utils.errors import UserError


class ResultCache:
    """Results as JSON files in ``folder``, named after the arm and a digest of its settings."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Return the file of an arm with these settings."""
        return self.folder / f"{name}-{digest(json.dumps(settings, sort_keys=True))[:8]}.json"

    def finished(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the result of an arm, None if it is not finished; raises UserError for a damaged file."""
        path = self.path(name, settings)
        try:
            return read_json(path)["result"] if path.is_file() else None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: it cannot be read ({type(error).__name__}); remove it to run this arm again"
            ) from error

    def run(self, name: str, settings: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of an arm; call ``work`` and cache its result unless the arm is finished."""
        result = self.finished(name, settings)
        if result is None:
            result = work()
            with atomic_write(self.path(name, settings)) as partial:
                partial.write_text(json.dumps({"arm": name, "settings": settings, "result": result}) + "\n")
        return result

    def announce(self, arms: Mapping[Any, Mapping[str, Any]]) -> None:
        """Print how many of ``arms``, each with its settings, are finished, if any is."""
        done = sum(self.finished(arm.name, settings) is not None for arm, settings in arms.items())
        if done:
            print(f"{done} of {len(arms)} arms are finished; their results are read from {self.folder}")

    def run_all(
        self,
        arms: Mapping[Any, Mapping[str, Any]],
        steps: int,
        work: Callable[[Any, Callable[[int], Any]], dict[str, Any]],
    ) -> dict[Any, dict[str, Any]]:
        """Return the result of each of ``arms``, of ``steps`` steps each, under one progress bar.

        ``arms`` have a ``name`` and are keys of their settings. ``work(arm, advance)`` calls ``advance(1)`` per step.
        """
        results = {}
        with tqdm(total=len(arms) * steps, unit="step", smoothing=0.01) as bar:
            for arm, settings in arms.items():
                bar.set_description(arm.name)
                before = bar.n
                results[arm] = self.run(arm.name, settings, lambda arm=arm: work(arm, bar.update))
                bar.update(steps - (bar.n - before))
        return results
