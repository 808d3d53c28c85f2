"""Judge a checkpoint or images: python -m pmf_lightning.evaluate ckpt=runs/... protocol=jit reference=stats.npz"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pmf_lightning import checks, weights_folder
from pmf_lightning.assemble import find_checkpoint, load_checkpoint, make_part
from pmf_lightning.cache import atomic_write
from pmf_lightning.command import command
from pmf_lightning.data.crop import CROP_RULE
from pmf_lightning.data.dataset import Source
from pmf_lightning.data.pixels import to_float
from pmf_lightning.errors import UserError
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.features import file_sha256
from pmf_lightning.evaluation.image_sets import open_images
from pmf_lightning.evaluation.keeping import KINDS, Kept
from pmf_lightning.evaluation.launch import is_main, joined
from pmf_lightning.evaluation.opening import DATA, open_evaluator
from pmf_lightning.evaluation.ranks import rank_and_world, together
from pmf_lightning.evaluation.scores import FLAGS, Scores
from pmf_lightning.folders import writable
from pmf_lightning.module import GenerativeModule
from pmf_lightning.pictures import save_grid
from pmf_lightning.sample import prepare_decoder, sampling_options
from pmf_lightning.sampling import network_evaluations, numbered_images

SHOWN, COLUMNS = 100, 10  # images on the grid
PACKAGES = ("pmf_lightning", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")


@dataclass(frozen=True)
class Subject:
    """What is judged: ``generate(labels, first)`` makes its images, ``about`` says what they are.

    ``n`` is how many there are (None: any number), ``shape`` that of an image, ``config`` the configuration of a model.
    """

    generate: Callable[[Tensor, int], Tensor]
    shape: tuple[int, int, int]
    n: int | None
    classes: int | None
    crop: str | None
    about: dict[str, Any]
    config: dict | None = None


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Judge what ``cfg`` (conf/evaluate.yaml) names; return what evaluation.json holds, the same on all ranks.

    Raises UserError for bad input, before long work.
    """
    check(cfg)
    with joined(cfg.device) as device:
        out = together(lambda: writable(Path(cfg.out), "out"))
        subject = together(lambda: subject_of(cfg, device))
        n = images_asked(cfg, subject)
        evaluator = together(lambda: evaluator_of(cfg, subject, device))
        kept = Kept(cfg.save, out, n, SHOWN)
        _ = evaluator.network, evaluator.reference_features
        started = time.perf_counter()
        classes = subject.classes or max(1, int(evaluator.reference.about.get("classes") or 1))
        scores = evaluator(subject.generate, n, classes, kept)
        kept.finish()
        report = {
            "metric": evaluator.name(scores.n),
            **subject.about,
            **described(cfg, evaluator, scores),
            "seconds": round(time.perf_counter() - started, 2),
            "images_per_second": round(n / (kept.latest - started), 2),
            "images": kept.path and str(kept.path),
            "grid": str(out / "grid.png"),
        }
        if rank_and_world()[0] == 0:
            save_grid(to_float(kept.first_images), COLUMNS, out / "grid.png")
            with atomic_write(out / "evaluation.json") as draft:
                draft.write_text(json.dumps(report, indent=2) + "\n")
    return report


def check(cfg: DictConfig) -> None:
    """Check what needs no file; raises UserError."""
    if (cfg.ckpt is None) == (cfg.images is None):
        raise UserError(f"ckpt={cfg.ckpt} images={cfg.images}: give one of the two, what is to be judged")
    if cfg.n is not None and cfg.n < 2:
        raise UserError(f"n={cfg.n}: two images at least make a distance")
    if cfg.chunk < 1:
        raise UserError(f"chunk={cfg.chunk}: at least one image at a time is needed")
    if cfg.save not in KINDS:
        raise UserError(f"save={cfg.save}: keep {' or '.join(KINDS)}")
    checks.torch_device(cfg.device)


def subject_of(cfg: DictConfig, device: torch.device) -> Subject:
    """Return the images that exist, or the checkpoint on its device with its sampling options; raises UserError."""
    if cfg.images is not None:
        return _existing(cfg)
    module = load_checkpoint(cfg.ckpt, cfg.ema)
    if not module.objective.methods:
        raise UserError(f"ckpt={cfg.ckpt}: {module.config['name']} makes no images to judge; give a generator")
    prepare_decoder(module, cfg.decoder.weights)
    options = sampling_options(cfg, module)
    module = module.to(device)
    return Subject(
        generate=lambda labels, first: numbered_images(module, labels, cfg.seed, first, **options),
        shape=_image_shape(module),
        n=None,
        classes=module.network.classes,
        crop=CROP_RULE if "root" in module.config["data"] else None,
        about=_about_checkpoint(cfg, module, options),
        config=module.config,
    )


def _existing(cfg: DictConfig) -> Subject:
    channels = cfg.data.channels if "data" in cfg and cfg.data is not None else 3
    images = open_images(cfg.images, channels)
    about = {"judged": str(cfg.images), "quantiser": "none: the images were whole levels"}
    return Subject(
        lambda labels, first: images(first, first + len(labels)), images.shape, len(images), None, None, about
    )


def _image_shape(module: GenerativeModule) -> tuple[int, int, int]:
    """Return channels, height and width of what the model shows."""
    network, decoder = module.network, module.decoder
    side = network.resolution * (decoder.scale if decoder is not None else 1)
    return (3 if decoder is not None else network.channels, side, side)


def _about_checkpoint(cfg: DictConfig, module: GenerativeModule, options: dict[str, Any]) -> dict[str, Any]:
    """Say which weights were judged and how they sampled."""
    if weights_folder.is_weights_folder(cfg.ckpt):
        file = Path(cfg.ckpt) / weights_folder.WEIGHTS
        ema = weights_folder.read(cfg.ckpt).about.weights
    else:
        file, ema = find_checkpoint(cfg.ckpt), cfg.ema or module.config["sampling"]["ema"]
    options = options | {"method": options["method"] or module.objective.methods[0]}
    return {
        "judged": str(cfg.ckpt),
        "model": module.config["name"],
        "checkpoint_sha256": file_sha256(file),
        "ema": ema,
        **options,
        "nfe": network_evaluations(module.objective, **options),
        "seed": cfg.seed,
    }


def evaluator_of(cfg: DictConfig, subject: Subject, device: torch.device) -> Evaluator:
    """Return what judges ``subject`` as ``cfg`` says; raises UserError."""
    return open_evaluator(
        make_part(cfg, "protocol"),
        make_part(cfg, "extractor"),
        cfg.reference,
        chunk=cfg.chunk,
        device=device,
        resolution=subject.shape[1],
        classes=subject.classes,
        channels=subject.shape[0],
        crop=subject.crop,
        source=data_at_hand(cfg, subject),
        cache_dir=cfg.cache_dir,
    )


def data_at_hand(cfg: DictConfig, subject: Subject) -> Source | None:
    """Return the data that ``data=`` names, or those of the checkpoint; None where there are neither, or not wanted."""
    if not cfg.extractor.get("_partial_", False) and cfg.reference != DATA:
        return None
    if cfg.get("data") is not None:
        return make_part(cfg, "data")
    return subject.config and make_part(OmegaConf.create(subject.config), "data")


def images_asked(cfg: DictConfig, subject: Subject) -> int:
    """Return how many images are judged; UserError where there are fewer."""
    if subject.n is None:
        return cfg.n or cfg.protocol.n
    n = cfg.n or subject.n
    if not 2 <= n <= subject.n:
        raise UserError(f"n={n}: {cfg.images} holds {subject.n} images; set n from 2 to that, or leave it out")
    return n


def described(cfg: DictConfig, evaluator: Evaluator, scores: Scores) -> dict[str, Any]:
    """Return scores, how they were made, and on what."""
    extractor, protocol, reference = evaluator.extractor, evaluator.protocol, evaluator.reference
    return {
        "scores": scores.named(protocol, extractor.name),
        **scores.as_dict(),
        "protocol": asdict(protocol),
        "extractor": {"name": extractor.name, "fingerprint": extractor.fingerprint()},
        "reference": {**reference.file, "n": reference.n, "about": dict(reference.about)},
        "chunk": cfg.chunk,
        "world_size": rank_and_world()[1],
        "device": _device_name(evaluator.device),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def show(report: dict[str, Any]) -> None:
    """Print scores, what they are of, and where the files lie."""
    table = Table(title=f"{report['metric']}: {report['judged']}", show_header=False)
    for name, value in report["scores"].items():
        table.add_row(name, f"{value:.4f}")
    for name in ("ema", "steps", "method", "omega", "t_min", "t_max", "nfe", "seed", "images_per_second"):
        if report.get(name) is not None:
            table.add_row(name, str(report[name]))
    table.add_row("reference", report["reference"]["path"])
    for flag in report["flags"]:
        table.add_row(flag, FLAGS[flag])
    Console(width=max(100, Console().width)).print(table)
    print(f"{Path(report['grid']).with_name('evaluation.json')} and {report['grid']}")
    if report["images"]:
        print(f"images: {report['images']}")


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Judge what the command line names and say what came out."""
    report = evaluate(cfg)
    if is_main():
        show(report)


if __name__ == "__main__":
    main()
