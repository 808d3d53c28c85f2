"""Arms of a study that are kept once they are finished, so that a stopped study goes on where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_write, digest
from pmf_lightning.utils.errors import UserError


class Arms:
    """Results as JSON files under ``folder``, each named after its arm and the settings that determine it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Return the file of an arm; other settings make another file."""
        return self.folder / f"{name}-{digest(json.dumps(settings, sort_keys=True))[:8]}.json"

    def finished(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the result of an arm, or None where it has to be run."""
        path = self.path(name, settings)
        try:
            return read_json(path)["result"] if path.is_file() else None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}); remove it, and the arm is run again"
            ) from error

    def run(self, name: str, settings: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of an arm, which ``work`` makes unless it is finished."""
        result = self.finished(name, settings)
        if result is None:
            result = work()
            with atomic_write(self.path(name, settings)) as partial:
                partial.write_text(json.dumps({"arm": name, "settings": settings, "result": result}) + "\n")
        return result
