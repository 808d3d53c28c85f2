"""Build the parts of a model from a composed configuration: network, objective, optimizer. Lightning is not needed."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from pmf_lightning.config import row_tables, validate
from pmf_lightning.config.compose import one_line
from pmf_lightning.data.dataset import DataSource, check_source
from pmf_lightning.models.activation_checkpointing import recompute_blocks
from pmf_lightning.models.vit import init_weights
from pmf_lightning.objectives.base import Objective, check_contract
from pmf_lightning.optim.host_moments import with_moments_on
from pmf_lightning.optim.optimizers import make_optimizer
from pmf_lightning.optim.schedules import DECAYS, rate_factor
from pmf_lightning.utils import rng
from pmf_lightning.utils.blocks import blocks_of
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate


@dataclass(frozen=True)
class ModelParts:
    """What a GenerativeModule consists of; its arguments of the same names say what each is."""

    network: nn.Module
    objective: Objective
    optimizer: Callable[[list[dict]], torch.optim.Optimizer]
    rate_factor: Callable[[int], float]
    decoder: Any
    augment: Any

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimizer of the network's weights; TypeError if what is configured is none."""
        return make_optimizer(self.optimizer, self.network)


def make_model(cfg: DictConfig, empty: bool = False) -> ModelParts:
    """Build the parts of a composed configuration; the initial weights are a function of ``cfg.seed``.

    ``empty`` leaves the network on the meta device, without memory, for weights that are loaded later.
    Raises UserError if options do not fit each other.
    """
    validate.model(cfg)
    validate.objective(cfg)
    objective, optimizer = make_objective(cfg), make_part(cfg, "optimizer")
    if cfg.moments.device is not None:
        optimizer = with_moments_on(cfg.moments.device, optimizer)
    augment = make_augment(cfg, objective)
    validate.sampler(cfg.sampling.get("sampler"), objective.samplers, cfg.sampling.steps, "sampling.")
    with torch.device("meta") if empty else nullcontext():
        network = make_part(_with_heads(cfg, objective.heads), "backbone")
    init_weights(network, lambda name: rng.generator(cfg.seed, "init", name))
    if cfg.activation_checkpointing:
        objective = _recomputed(cfg, network, objective)
    if cfg.compile and not objective.samplers:
        raise UserError(f"compile=true: {cfg.name} is not a generator, and only generators are compiled; leave it out")
    if cfg.compile and not blocks_of(network):
        raise UserError(f"compile=true: the network of {cfg.name} has no blocks to compile; leave it out")
    decoder = None if cfg.decoder is None else make_part(cfg, "decoder")
    shares = {name: cfg.schedule[name] for name in ("warmup_fraction", "decay_fraction")}
    start = cfg.schedule.get("start", 0.0)  # missing in older checkpoints
    first = start / cfg.optimizer.lr if start else 0.0
    decay = cfg.schedule.get("decay_shape", DECAYS[0])  # missing in older checkpoints
    schedule = partial(rate_factor, steps=cfg.steps, first=first, decay=decay, **shares)
    parts = ModelParts(network, objective, optimizer, schedule, decoder, augment)
    try:
        parts.make_optimizer()  # report bad numbers now, before training starts
    except (ValueError, TypeError) as error:  # TypeError: it is no optimizer
        raise UserError(f"optimizer: {error}") from error
    return parts


def make_objective(cfg: DictConfig) -> Objective:
    """Instantiate the objective; UserError for values out of range, or if it does not fulfil its contract."""
    objective = make_part(cfg, "objective")
    if cfg.get("posttrain") is not None:  # missing in older checkpoints
        objective = _post_trained(cfg, objective)
    try:
        check_contract(objective)
    except ValueError as error:
        raise UserError(f"objective: {error}") from error
    return objective


def _post_trained(cfg: DictConfig, objective: Objective) -> Objective:
    """Return the objective of ``posttrain=`` around that of the model; raises UserError."""
    made = make_part(cfg, "posttrain")
    if not isinstance(made, partial):
        raise UserError("posttrain._partial_: set it to true; the objective of the model is passed later")
    try:
        wrapped = made(generator=objective)
    except (TypeError, ValueError) as error:
        raise UserError(f"posttrain.{error}") from error
    if missing := [group for group in wrapped.config_groups if cfg.get(group) is None]:
        raise UserError(f"{missing[0]}=null: posttrain={wrapped.name} needs it; choose one, or leave posttrain= out")
    return wrapped


def make_augment(cfg: DictConfig, objective: Objective) -> Any:
    """Instantiate ``augment=``; None without. Raises UserError if the objective does not pass on how images were moved.

    Its generator would imitate the moved images.
    """
    if cfg.get("augment") is None:  # missing in older checkpoints
        return None
    if not objective.passes_conditions:
        raise UserError(
            f"augment=edm: the loss of {cfg.name} does not tell the network how an image was moved, so samples would "
            "be moved too; leave augment= out"
        )
    return make_part(cfg, "augment")


def make_source(cfg: DictConfig) -> DataSource:
    """Instantiate the data source; UserError if it does not fulfil its contract. Its ``check`` is not called."""
    source = instantiate(cfg.data)
    check_source(source)
    return source


def _recomputed(cfg: DictConfig, network: nn.Module, objective: Objective) -> Objective:
    """Turn on activation checkpointing; return the objective for it."""
    if not recompute_blocks(network):
        raise UserError(
            f"activation_checkpointing=true: the network of {cfg.name} has no transformer blocks to save memory in"
        )
    return objective.with_activation_checkpointing()


def _with_heads(cfg: DictConfig, trained: Sequence[str]) -> DictConfig:
    """Drop the backbone's heads that the objective does not train."""
    heads = cfg.backbone.get("heads")
    if heads is None or set(heads) <= set(trained):
        return cfg
    cfg = copy.deepcopy(cfg)
    cfg.backbone.heads = {name: blocks for name, blocks in heads.items() if name in trained}
    return cfg


def make_part(cfg: DictConfig, part: str) -> Any:
    """Instantiate ``cfg[part]``; errors of its constructor are raised as UserError naming the part.

    A backbone that is no torch module is a UserError too. (A decoder is none: its weights are not the model's.)
    """
    found = build_part(part, row_tables.without_table(cfg, part), prefix_user_errors=True)
    if part == "backbone" and not isinstance(found, nn.Module):
        raise UserError(
            f"{part}._target_={cfg[part]['_target_']}: it builds a {type(found).__name__}, not a torch.nn.Module; "
            "name a class of networks, or leave it out"
        )
    return found


def build_part(option: str, section: Any, prefix_user_errors: bool = False) -> Any:
    """Instantiate ``section``, the configuration of ``option``; errors of its constructor are raised as UserError.

    The message names the option. UserErrors name one themselves; ``prefix_user_errors`` adds ``option`` unless they
    name one below it.
    """
    try:
        return instantiate(section, _convert_="all")
    except (InstantiationException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        message = one_line(cause)
        named = message.startswith(f"{option}.") or (isinstance(cause, UserError) and not prefix_user_errors)
        raise UserError(message if named else f"{option}: {message}") from error
