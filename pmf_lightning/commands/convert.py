"""Read weights in one format and write them in another (command convert)."""

import shlex
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError

from pmf_lightning.exporting.card import CARD, UNKNOWN, card, facts_of, usage_of, write_card
from pmf_lightning.exporting.export import FORMATS, ExportRequest, check_format, export, is_export, takes_one_step
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.checkpoints import find_checkpoint, load_checkpoint, module_of
from pmf_lightning.pipeline.conversion import from_checkpoint, heads_of, official_dict
from pmf_lightning.pipeline.loading import holds_release, stored_release, with_last_run
from pmf_lightning.pipeline.sources import located
from pmf_lightning.pipeline.weights_folder import StoredWeights, is_weights_folder
from pmf_lightning.utils.cache import atomic_write, writable
from pmf_lightning.utils.errors import UserError, options_called
from pmf_lightning.utils.pasted import path_argument

_FILES = (".pt", ".pth")  # official weights
_NO_FOLDERS = (".safetensors", ".ckpt", ".json")


def run(cfg: DictConfig) -> StoredWeights:
    """Convert weights as ``pmf_lightning.convert.convert`` describes it."""
    if OmegaConf.is_missing(cfg, "out"):
        raise UserError("out is not set; --help describes it")
    cfg = with_last_run(cfg, "in")
    source, out = (Path(str(cfg[key])).expanduser() for key in ("in", "out"))
    check_format(cfg.format)
    _check_out(out, source, cfg.force, cfg.format)
    with options_called(ckpt="in"):
        source = located(source)
        stored = _read(source, out, cfg)
        if cfg.format in FORMATS[1:]:
            _export(out, stored, source, cfg)
            return stored
    _write(out, stored, source, cfg)
    return stored


def _check_out(out: Path, source: Path, force: bool, kind: str | None) -> None:
    if out.suffix in _NO_FOLDERS:
        raise UserError(f"out={out}: give the name of a folder, or of a .pt or .pth file")
    if kind is not None and out.suffix in _FILES:
        raise UserError(f"out={out}: format={kind} is a folder; give the name of one, or leave format out")
    if out.exists() or out.is_symlink():
        replaceable = out.is_file() if out.suffix in _FILES else is_weights_folder(out) or is_export(out)
        if not replaceable:
            raise UserError(f"out={out}: something else is there; set another out")
        if not force:
            raise UserError(f"out={out}: exists already; set another out, or force=true to replace it")
        if source.exists() and out.samefile(source):
            raise UserError(f"out={out}: it is the same as in; set another out")
    writable(out.parent, "out")


def _read(source: Path, out: Path, cfg: DictConfig) -> StoredWeights:
    to_file = out.suffix in _FILES
    if to_file and holds_release(source):
        raise UserError(f"in={source} out={out}: both are official files; give out the name of a folder")
    if (released := stored_release(source, source, cfg)) is not None:
        return released
    given = [key for key, sign in (("model", "name"), ("data", "data")) if cfg.get(sign) is not None]
    if given:
        raise UserError(f"{given[0]}=...: {source} has its own configuration; leave {' and '.join(given)} out")
    if not is_weights_folder(source):
        return from_checkpoint(find_checkpoint(source), cfg.ema, cfg.trust)
    if not to_file and cfg.format is None:
        raise UserError(
            f"in={source} out={out}: both are folders of weights; give out a name that ends in .pt, or set format="
        )
    load_checkpoint(source, cfg.ema, cfg.trust)  # raises UserError if weights and configuration do not match
    return weights_folder.read(source)


def _export(out: Path, stored: StoredWeights, source: Path, cfg: DictConfig) -> None:
    """Write one of the formats of other programs."""
    facts = facts_of(source)
    options = {"part": cfg.onnx.part, "opset": cfg.onnx.opset, **cfg.web}
    request = ExportRequest(cfg.format, f"in={cfg['in']}", facts, cfg.licence, _command(cfg), cfg.vae, **options)
    try:
        export(out, module_of(stored, source, cfg.trust), request)
    except (OSError, SafetensorError) as error:  # a full disk raises either
        raise UserError(f"out={out}: cannot be written ({error}); set another out") from error


def _write_card(out: Path, stored: StoredWeights, source: Path, cfg: DictConfig) -> None:
    """Write the model card of a folder for the hub, and what it states."""
    facts, module = facts_of(source), module_of(stored, source, cfg.trust)
    write_card(out, card(module, facts, usage_of(module, out.name), cfg.licence, _command(cfg)), facts)


def _command(cfg: DictConfig) -> str:
    """Return the command of a conversion, without the options that describe a released file or its runtime."""
    paths = {name: cfg[name] for name in ("in", "out", "vae")}
    others = {name: cfg[name] for name in ("format", "ema")}
    others |= {"licence": None if cfg.licence == UNKNOWN else cfg.licence}
    if cfg.format == "onnx":
        others |= {f"onnx.{name}": cfg.onnx[name] for name in ("part", "opset")}
    words = [path_argument(name, value) for name, value in paths.items() if value is not None]
    words += [shlex.quote(f"{name}={value}") for name, value in others.items() if value is not None]
    return " ".join(["python", "-m", "pmf_lightning.convert", *words])


def _write(out: Path, stored: StoredWeights, source: Path, cfg: DictConfig) -> None:
    weights = official_dict(stored, cfg.inference, cfg.trust) if out.suffix in _FILES else None
    try:
        if weights is None:
            weights_folder.write(out, stored, cfg.force)
            if cfg.format is not None:
                _write_card(out, stored, source, cfg)
        else:
            with atomic_write(out) as draft:
                torch.save(weights, draft)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of them
        raise UserError(f"out={out}: cannot be written ({error}); set another out") from error


def run_and_show(cfg: DictConfig) -> None:
    """Convert weights and print a summary."""
    stored = run(cfg)
    if cfg.format in FORMATS[1:]:
        print(f"{cfg.out}: weights {stored.about.weights} of {stored.about.config['name']}, format {cfg.format}")
        steps = stored.about.config["sampling"]["steps"]
        if takes_one_step(cfg.format, cfg.onnx.part) and steps > 1:
            print(f"note: the file takes one step, sample takes {steps}; onnx.part=network is for loops of your own")
        print(f"{Path(str(cfg.out)) / CARD} says how to open it")
        return
    about, heads = stored.about, heads_of(stored.network)
    what = f"{cfg.out}: weights {about.weights} of {about.config['name']}"
    if Path(str(cfg.out)).suffix in _FILES:
        left_out = ", without the parts that only training uses" if cfg.inference else ""
        print(f"{what}, under the official names of {about.family}{left_out}")
        return
    count = sum(value.numel() for value in stored.network.values())
    print(f"{what}, {count:,} values, heads {', '.join(heads)}")
    trust = f" trust=[{','.join(cfg.trust)}]" if cfg.trust else ""
    print(f"images from them: python -m pmf_lightning.sample {path_argument('ckpt', cfg.out)}{trust}")
