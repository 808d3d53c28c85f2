"""Build the LightningModule of a composed configuration."""

from omegaconf import DictConfig

from pmf_lightning.config import row_tables
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.parts import make_model


def build(cfg: DictConfig, empty: bool = False) -> GenerativeModule:
    """Build the module of a composed configuration; its initial weights are a function of ``cfg.seed``.

    ``empty`` leaves the network on the meta device, without memory, for weights that are loaded later.
    Raises UserError if options do not fit each other.
    """
    return GenerativeModule(**vars(make_model(cfg, empty)), seed=cfg.seed, config=row_tables.stored(cfg))
