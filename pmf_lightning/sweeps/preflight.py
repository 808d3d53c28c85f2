"""Check before a sweep starts that its runs have the data and weights that they need."""

import json

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config import validate
from pmf_lightning.config.compose import one_line
from pmf_lightning.pipeline.build import build
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.training.prepare import make_evaluator, open_source
from pmf_lightning.utils.errors import UserError

PARTS = ("data", "decoder", "features", "battery", "metrics", "protocol", "extractor", "trainer")


class Preflight:
    """Checks the requirements of runs; equal requirements are checked once."""

    def __init__(self):
        self._known: dict[str, str | None] = {}

    def refusal(self, cfg: DictConfig) -> str | None:
        """Return why ``train`` would reject this run at once, None if no reason is found.

        Checks the device, the data, the requirements of metrics=fid, and the published weights of perceptual losses.
        Nothing is trained or measured.
        """
        try:
            validate.training(cfg)
            module = build(cfg, empty=True)
            parts = [OmegaConf.to_container(cfg[name], resolve=True) for name in PARTS if cfg.get(name)]
        except (UserError, OmegaConfBaseException) as error:  # the configuration may already need data.root
            return one_line(error)
        key = json.dumps([cfg.objective["_target_"], _names(module), parts], sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = _problem(cfg, module)
        return self._known[key]


def _problem(cfg: DictConfig, module: GenerativeModule) -> str | None:
    try:
        _check(cfg, module)
    except (UserError, OmegaConfBaseException) as error:
        return one_line(error)
    return None


def _check(cfg: DictConfig, module: GenerativeModule) -> None:
    source = open_source(cfg)
    make_evaluator(cfg, source, module)
    for name in _names(module):
        request = module.objective.encoder_request
        group = cfg[request.group] if request.target is None else cfg[request.group].members
        settings = group.get(name)
        if settings is not None and not settings.get("_partial_"):  # partial ones are trained by us if they are missing
            make_part(group, name)


def _names(module: GenerativeModule) -> list[str]:
    """Return the names of the encoders that the objective requests."""
    request = module.objective.encoder_request
    return list(request.names or ()) if request else []
