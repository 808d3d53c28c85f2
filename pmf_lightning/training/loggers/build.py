"""Build the loggers of a run: the files of its directory, and those of ``logger=``."""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import Logger

from pmf_lightning.pipeline.parts import build_part
from pmf_lightning.training.loggers.jsonl import JSONLLogger
from pmf_lightning.training.settings import LoggedRun
from pmf_lightning.utils.errors import UserError

# Logger of Lightning -> packages, one of which it needs.
_PACKAGES = {
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "MLFlowLogger": ("mlflow",),
    "CometLogger": ("comet_ml",),
    "NeptuneLogger": ("neptune",),
}
RUN_DIR = "{run_dir}"  # in the settings of loggers, stands for the run directory, which is chosen last


def make_loggers(sections: Mapping[str, Mapping[str, Any]], run: LoggedRun) -> list[Logger]:
    """Return the logger of metrics.jsonl, and one for each section of ``logger``, which describes it by ``_target_``.

    A section with ``_partial_`` is completed with ``run``. Other loggers get the configuration as their
    hyperparameters. Raises UserError if a logger cannot be built.
    """
    loggers: list[Logger] = [JSONLLogger(run.folder, run.batch, run.first_step)]
    for name, section in sections.items():
        logger = build_part(f"logger.{name}", _in_folder(section, str(run.folder)))
        logger = logger(run=run) if isinstance(logger, partial) else logger
        if not isinstance(logger, Logger):
            raise UserError(f"logger.{name}: {section['_target_']} is not a logger of Lightning")
        logger.log_hyperparams(dict(run.config))
        loggers.append(logger)
    return loggers


def check_packages(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError if the package of a logger is not installed."""
    for name, section in sections.items():
        needed = _PACKAGES.get(section["_target_"].rpartition(".")[2], ())
        if needed and not any(find_spec(package) for package in needed):
            raise UserError(f"logger.{name}: it needs a package that is not installed; pip install {needed[0]}")


def _in_folder(value: Any, folder: str) -> Any:
    """Return plain data with the run directory in place of RUN_DIR."""
    if isinstance(value, Mapping):
        return {key: _in_folder(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_folder(inner, folder) for inner in value]
    return value.replace(RUN_DIR, folder) if isinstance(value, str) else value
