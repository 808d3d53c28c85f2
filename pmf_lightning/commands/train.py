"""Run a training: check it, choose its directory, fit, and write the summary (command train)."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config import validate
from pmf_lightning.config.compose import one_line
from pmf_lightning.config.one_class import for_its_classes
from pmf_lightning.distributed import slurm
from pmf_lightning.pipeline.loading import with_last_run
from pmf_lightning.pipeline.sources import LAST
from pmf_lightning.profiling import model_cost
from pmf_lightning.profiling.model_facts import count_memory, frozen_weights
from pmf_lightning.profiling.step_memory import on_meta
from pmf_lightning.sweeps import subprocess_run
from pmf_lightning.sweeps.jobs import in_multirun
from pmf_lightning.training import resume, run_dir
from pmf_lightning.training.callbacks.build import TrainingCallbacks, make_callbacks
from pmf_lightning.training.callbacks.micro_batch import CountedMemory
from pmf_lightning.training.class_names import announce_classes, check_same_classes
from pmf_lightning.training.loggers.build import make_loggers
from pmf_lightning.training.loggers.wandb import WandbLogger, WandbResume
from pmf_lightning.training.prepare import Parts, open_source, prepare, run_request
from pmf_lightning.training.resume import Start
from pmf_lightning.training.run_log import RunLog
from pmf_lightning.training.settings import LoggedRun
from pmf_lightning.training.summary import evaluations, finish, pictures
from pmf_lightning.training.trainer import make_trainer, show_profile
from pmf_lightning.utils import threads
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import Diverged, ProcessLost, UserError
from pmf_lightning.utils.free_space import free_memory
from pmf_lightning.utils.pasted import path_argument
from pmf_lightning.utils.provenance import provenance

LARGE = 50_000_000  # weights of a network whose memory is always printed before it trains


def run(cfg: DictConfig) -> dict:
    """Run a training as ``pmf_lightning.train.train`` describes it."""
    log = RunLog()
    given = None if cfg.threads == threads.AUTO else cfg.threads
    recorded = run_dir.record_errors(cfg.run_dir, cfg.get("ckpt"), in_multirun())
    with log.recording(), recorded, threads.fixed(given):
        return _train(cfg, log)


def run_in_subprocess(cfg: DictConfig) -> dict | None:
    """Run a job of a multirun on several devices in its own process; None if this process can train it itself."""
    if not subprocess_run.needs_subprocess(validate.world_size(cfg.trainer)):
        return None
    return subprocess_run.train_in_subprocess(run_request(cfg))


def _train(cfg: DictConfig, log: RunLog) -> dict:
    started = time.perf_counter()
    cfg = validate.settle_accelerator(cfg)
    validate.training(cfg)
    cfg, unguided = for_its_classes(cfg)
    if unguided:
        rank_zero_only(print)(unguided, flush=True)
    if cfg.init_from == LAST:
        cfg = from_last_run(cfg)
    request = run_request(cfg)
    if (summary := resume.finished(request)) is not None:
        print(f"{request.run_dir} is finished already; nothing to do")
        return summary
    known = run_dir.known(request)
    start = resume.find(request, known)
    source = open_source(cfg)
    check_same_classes(source, start.checkpoint)
    parts = prepare(cfg, source, resumed=start.checkpoint is not None)
    folder = run_dir.choose(request, known)
    with run_dir.lock_run_dir(folder):
        start = resume.find_again(start, request, folder)
        log.open(folder)
        save_hydra_files(cfg, folder)
        announce(parts, folder, start)
        trainer, callbacks = fit(parts, folder, start, memory_of_a_step(cfg, parts), started)
        if callbacks.checkpoint.signals.requeue:
            slurm.requeue(resumes=request.run_dir is not None and request.ckpt in ("auto", "last"))  # time is short
        with _room(folder):
            return finish(parts, trainer, callbacks, folder)


def from_last_run(cfg: DictConfig) -> DictConfig:
    """Return ``cfg`` whose ``init_from`` is the newest run; raises UserError where that may be a run of its own."""
    if cfg.ckpt is not None or in_multirun():
        where = "in a sweep" if in_multirun() else f"with ckpt={cfg.ckpt}"
        raise UserError(f"init_from=last: {where} the newest run may be one of this command; name the run")
    return with_last_run(cfg, "init_from")


def memory_of_a_step(cfg: DictConfig, parts: Parts) -> CountedMemory | None:
    """Return the memory of a step if it decides the micro-batch, otherwise None; print that of a large network."""
    objective = parts.module.objective
    chooses = cfg.micro_batch == "auto" and objective.data == "images" and not objective.needs_global_batch
    if not chooses and sum(weight.numel() for weight in parts.module.network.parameters()) < LARGE:
        return None
    try:
        network, devices = on_meta(parts.module.network), validate.world_size(cfg.trainer)
        memory = count_memory(
            cfg,
            network,
            objective,
            lambda: parts.module.optimizer_of(network),
            parts.data.accumulation(devices),
            parts.source,
            frozen_weights(cfg, objective, parts.source),
        )
    except Exception as error:  # of a network of someone else's that cannot be counted: it can be trained
        all_at_once = "; micro_batch=auto takes all images of a device at once" * chooses
        rank_zero_only(print)(f"  memory: not counted ({one_line(error)}){all_at_once}", flush=True)
        return None
    free = room(cfg.trainer.accelerator)
    needed = memory.process if cfg.trainer.accelerator == "cpu" else memory.peak
    lacking = not chooses and needed > free
    remedy = f"; {free / 1e9:.3g} GB are free: try micro_batch=auto or activation_checkpointing=true" * lacking
    rank_zero_only(print)(f"  {memory.line()}{remedy}", flush=True)
    if not chooses:
        return None
    moments = 0 if memory.moments_on_host and cfg.trainer.accelerator != "cpu" else memory.optimizer
    return CountedMemory(memory.gradients, moments, memory.update, memory.per_image)


def room(accelerator: str) -> int:
    """Return the free bytes of the machine, or all bytes of its first GPU."""
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.get_device_properties(0).total_memory
    return free_memory()


def fit(
    parts: Parts, folder: Path, start: Start, memory: CountedMemory | None = None, started: float | None = None
) -> tuple[Trainer, TrainingCallbacks]:
    """Train ``parts`` in ``folder`` from ``start``; return the trainer and our callbacks.

    With ``memory``, the micro-batch is chosen by it. ``started`` is time.perf_counter() at the start; None: now.

    Raises Diverged, ProcessLost if another process of the run ended, and NotSaved.
    """
    callbacks = make_callbacks(parts, folder, memory, started)
    run = LoggedRun(folder, parts.settings.batch, parts.module.config, start.step, start.wandb_run)
    loggers = make_loggers(parts.loggers, run)
    resuming = [WandbResume(logger.version) for logger in loggers if isinstance(logger, WandbLogger)]
    trainer = make_trainer(parts, folder, [*callbacks.listed(), *resuming], loggers)
    try:
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=start.checkpoint, weights_only=True)
    except Diverged:
        pictures(folder)  # the error message refers to them
        trainer.strategy.barrier()  # rank 0 draws; a launcher would kill it when another rank exits
        raise
    except RuntimeError as error:
        if trainer.world_size > 1 and _of_the_network(error):
            raise ProcessLost(
                f"step {trainer.global_step}: another process of this run has ended or cannot be reached "
                f"({one_line(error)}); see its last output, and resume with "
                f"{path_argument('run_dir', folder)} ckpt=last"
            ) from error
        raise
    show_profile(folder)
    return trainer, callbacks


def _of_the_network(error: RuntimeError) -> bool:
    """Return whether an error is a connection error between ranks; gloo's have no type of their own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Turn an OSError while the summary is written, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run_dir={folder}: the checkpoint is saved, the summary is not ({error}); "
            f"free some space and repeat the command with {path_argument('run_dir', folder)} ckpt=auto"
        ) from error


@rank_zero_only
def save_hydra_files(cfg: DictConfig, folder: Path) -> None:
    """With ``hydra.output_subdir=.hydra``, move Hydra's record of the command line to the run directory.

    Hydra itself writes it to the working directory, where runs would overwrite each other's.
    """
    if not HydraConfig.initialized() or HydraConfig.get().output_subdir is None:
        return
    hydra = HydraConfig.get()
    there, here = folder / hydra.output_subdir, Path(hydra.runtime.output_dir) / hydra.output_subdir
    there.mkdir(parents=True, exist_ok=True)
    contents = {"config": cfg, "hydra": OmegaConf.create({"hydra": hydra}), "overrides": hydra.overrides.task}
    for name, part in contents.items():
        OmegaConf.save(part, there / f"{name}.yaml")
        if here.resolve() != there.resolve():
            (here / f"{name}.yaml").unlink(missing_ok=True)
    if here.is_dir() and not any(here.iterdir()):
        here.rmdir()


@rank_zero_only
def announce(parts: Parts, folder: Path, start: Start) -> None:
    """Print the run's setup and costs; write config.yaml, run.json (versions and hardware) and the class names."""
    settings, source, module = parts.settings, parts.source, parts.module
    with atomic_write(folder / "config.yaml") as draft:
        OmegaConf.save(OmegaConf.create(module.config), draft)
    with atomic_write(folder / "run.json") as draft:
        origin = start.init_from if start.checkpoint else module.init_from
        about = provenance(settings.trainer["accelerator"]) | ({"init_from": origin} if origin else {})
        draft.write_text(json.dumps(about, indent=2) + "\n")
    begin = f" from step {start.step:,}" if start.step else ""
    kind = "pixels" if module.decoder is None else "latents"
    print(f"{settings.name} on {source.name}, {source.channels} x {source.resolution} x {source.resolution} {kind}")
    is_generator = bool(module.objective.samplers)
    weights = sum(weight.numel() for weight in module.network.parameters())
    print(f"  {model_cost.count(module.network) if is_generator else f'{weights:,} parameters'}")
    steps, images = counted(settings.steps, "step"), counted(settings.batch, "image")
    print(f"  {steps} of {images}{begin}; everything is written to {folder}")
    if start.checkpoint:
        print(f"  {start.line}")
    if module.config["compile"]:
        print("  the blocks are compiled during the first steps, which take up to a few minutes")
    for line in (*parts.init_lines, module.objective.encoder_note(module.encoders), module.objective.loss_note):
        if line:
            print(f"  {line}")
    if is_generator:
        steps = settings.sampling["steps"]
        cost = counted(evaluations(parts, steps), "network evaluation")
        print(f"  evaluated by samples of {counted(steps, 'step')}, {cost} per image")
    announce_classes(source, folder)
