"""The benchmarks by name, and what they measure of a configuration (command benchmark)."""

import json
import platform
import sys
from pathlib import Path

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config import validate
from pmf_lightning.config.one_class import for_its_classes
from pmf_lightning.pipeline.batches import given_micro_batch
from pmf_lightning.pipeline.build import build
from pmf_lightning.pipeline.parts import make_source
from pmf_lightning.profiling.benchmarks import growth, reader, step
from pmf_lightning.profiling.benchmarks.optimizer import benchmark_optimizer
from pmf_lightning.profiling.benchmarks.sampling import benchmark_sampling, describe_sampling
from pmf_lightning.profiling.step_memory import real_counts_of, step_flops
from pmf_lightning.sampling.generate import OPTIONS
from pmf_lightning.utils.cache import check_not_there, writable
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.rng import BatchRows


def _optimizer(cfg: DictConfig) -> dict:
    device, ns_dtype = _device(cfg), cfg.optimizer.get("ns_dtype", "auto")  # only Muon has it
    numbers = benchmark_optimizer(build(cfg).network.to(device), cfg.repeats, ns_dtype)
    return {"model": cfg.name, "device": _name_of(device), **numbers}


def _optimizer_in_words(result: dict) -> str:
    muon = result["muon"]
    return (
        f"{muon['count']} matrices: {muon['ours_ms']:.1f} ms, torch.optim.Muon {muon['torch_ms']:.1f} ms, "
        f"{muon['ratio']:.1f}x ({muon['ratio_min']:.1f} to {muon['ratio_max']:.1f})"
    )


def _reader(cfg: DictConfig) -> dict:
    settings = reader.ReaderSettings(**OmegaConf.to_container(cfg.reader))
    return {"data": cfg.data.name, **reader.benchmark_reader(make_source(cfg), settings, cfg.repeats)}


def _images(cfg: DictConfig) -> int:
    return cfg.images_at_once or given_micro_batch(cfg) or cfg.batch


def _bench(cfg: DictConfig, device: torch.device) -> step.StepBench:
    module, averages = build(cfg), len(cfg.ema.halflife_kimg)
    counts = real_counts_of(cfg, module.objective)
    return step.make_bench(module, _images(cfg), device, str(cfg.trainer.precision), cfg.compile, averages, counts)


def _step(cfg: DictConfig) -> dict:
    device = _device(cfg)
    if cfg.against not in (None, "textbook"):
        raise UserError(f"against={cfg.against}: give textbook, or null to measure the step by itself")
    empty = build(cfg, empty=True)
    real_counts = real_counts_of(cfg, empty.objective)
    flops = step_flops(empty.network, empty.objective, _images(cfg), BatchRows(), real_counts)
    numbers = step.benchmark_step(_bench(cfg, device), flops, cfg.repeats, cfg.against)
    return {"model": cfg.name, "images": _images(cfg), **_circumstances(cfg, device), **numbers}


def _growth(cfg: DictConfig) -> dict:
    device, wanted = _device(cfg), [str(name) for name in cfg.curves]
    for name in wanted:
        if name not in cfg.growth:
            raise UserError(f"curves={name}: there is no such curve; {suggestions(name, cfg.growth)}")
    curves = {name: list(cfg.growth[name]) for name in wanted}

    def bench(change: DictConfig) -> step.StepBench:
        try:
            return _bench(OmegaConf.merge(cfg, change), device)
        except OmegaConfBaseException as error:
            raise UserError(f"growth: {change} does not fit the configuration; {error}".splitlines()[0]) from error

    return {"model": cfg.name, **_circumstances(cfg, device), **growth.benchmark_growth(bench, curves, cfg.repeats)}


def _sampling(cfg: DictConfig) -> dict:
    if cfg.compile:
        raise UserError("compile=true: what=sampling measures the network without the compiler; leave it out")
    device, options = _device(cfg), {name: cfg.sampling[name] for name in OPTIONS}
    module = build(cfg).eval().to(device)
    numbers = benchmark_sampling(module, list(cfg.sampling_batches), cfg.repeats, str(cfg.trainer.precision), options)
    return {"model": cfg.name, **_circumstances(cfg, device), **numbers}


def _device(cfg: DictConfig) -> torch.device:
    validate.device(cfg.trainer.accelerator, 1)
    validate.precision(cfg)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    return torch.device("cuda" if cfg.trainer.accelerator == "gpu" else cfg.trainer.accelerator)


def _name_of(device: torch.device) -> str:
    cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()


def _circumstances(cfg: DictConfig, device: torch.device) -> dict:
    return {"device": _name_of(device), "precision": str(cfg.trainer.precision), "compile": cfg.compile}


# name -> (function that measures, function that formats the result as text)
BENCHMARKS = {
    "optimizer": (_optimizer, _optimizer_in_words),
    "data": (_reader, reader.describe),
    "step": (_step, step.describe),
    "growth": (_growth, growth.describe_growth),
    "sampling": (_sampling, describe_sampling),
}


def run(cfg: DictConfig) -> dict:
    """Run a benchmark as ``pmf_lightning.benchmark.benchmark`` describes it."""
    if cfg.what not in BENCHMARKS:
        raise UserError(f"what={cfg.what}: there is no such benchmark; {suggestions(cfg.what, BENCHMARKS)}")
    if cfg.out is not None:
        check_not_there(cfg.out, [Path(cfg.out)], cfg.force)
        writable(Path(cfg.out).parent, "out")
    measure, _ = BENCHMARKS[cfg.what]
    cfg = validate.settle_accelerator(cfg)
    of_images = cfg.what in ("step", "growth", "sampling")
    if of_images and not getattr(get_object(cfg.objective["_target_"]), "samplers", ()):
        raise UserError(f"what={cfg.what}: model={cfg.name} generates no images; choose a generator, or what=optimizer")
    cfg, unguided = for_its_classes(cfg) if of_images else (cfg, None)
    if unguided:
        print(unguided, file=sys.stderr)
    numbers = measure(cfg)
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"what": cfg.what, "repeats": cfg.repeats, **machine, **numbers}
    if cfg.out is not None:
        Path(cfg.out).write_text(json.dumps(result, indent=2) + "\n")
    return result


def run_and_show(cfg: DictConfig) -> None:
    """Run a benchmark and print its result."""
    result = run(cfg)
    print(json.dumps(result, indent=2))
    _, in_words = BENCHMARKS[result["what"]]
    print(in_words(result))
