"""Make training shards from images, or verify them (command shard)."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from pmf_lightning.config import validate
from pmf_lightning.config.compose import compose
from pmf_lightning.data.images.decoder import check_background, describe_conversions
from pmf_lightning.data.images.files import zip_of
from pmf_lightning.data.images.labels import check_rule
from pmf_lightning.data.shards.manifest import KINDS, Manifest, read_manifest
from pmf_lightning.data.shards.payloads import PAYLOADS
from pmf_lightning.data.shards.writing.input_tars import find_inputs
from pmf_lightning.data.shards.writing.inputs import Inputs
from pmf_lightning.data.shards.writing.latents import LatentMaker, weights_digest
from pmf_lightning.data.shards.writing.make import ShardingJob, ShardingResult, amount, make_shards
from pmf_lightning.data.shards.writing.pixels import make_pixels
from pmf_lightning.data.shards.writing.processes import in_processes
from pmf_lightning.data.shards.writing.progress import LIST, Finished
from pmf_lightning.data.shards.writing.recipe import Recipe, ShardTask
from pmf_lightning.data.shards.writing.table_inputs import PREFIX, table_inputs
from pmf_lightning.data.shards.writing.tar_files import room_to_unpack
from pmf_lightning.data.shards.writing.verify import verify
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.models.sd_vae import SDVAE
from pmf_lightning.utils.cache import no_empty_folder, writable
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.free_space import all_cores
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.pasted import path_argument


def run(cfg: DictConfig) -> ShardingResult:
    """Make shards as ``pmf_lightning.shard.shard`` describes it."""
    _check(cfg)
    with no_empty_folder(_out(cfg)):
        out = writable(_out(cfg), "out")
        vae = _autoencoder(cfg) if cfg.kind == "latents" else None
        with room_to_unpack(out) as unpacked:
            return _made(cfg, out, vae, unpacked)


def _made(cfg: DictConfig, out: Path, vae: SDVAE | None, unpacked: Path) -> ShardingResult:
    num_workers = cfg.num_workers or all_cores()
    inputs = _inputs(cfg, num_workers, unpacked)
    side = None if vae is None else cfg.size // vae.scale
    shape = None if vae is None else (2, len(vae.mean), side, side)
    job = ShardingJob(inputs, _recipe(cfg, inputs, vae), out, str(cfg["in"]), float(cfg.max_unreadable), shape)

    def pixels(tasks: Iterable[ShardTask], progress: Callable[[int], None]) -> Iterator[Finished]:
        return in_processes(make_pixels, tasks, num_workers, progress)

    try:
        return make_shards(
            job, pixels if vae is None else LatentMaker(vae.encode, cfg.device, cfg.batch, num_workers).make_each
        )
    except OSError as error:
        raise UserError(
            f"out={out}: cannot be written ({error.strerror or error}); free some space and repeat the command; "
            "finished shards are reused"
        ) from error
    except MemoryError as error:
        raise UserError(f"num_workers={num_workers}: out of memory; set fewer; finished shards are reused") from error


def _inputs(cfg: DictConfig, num_workers: int, unpacked: Path) -> Inputs:
    given = str(cfg["in"])
    if given.startswith(PREFIX):
        return table_inputs(given, cfg.split or "train", cfg.subset, cfg.image_column, cfg.label_column, unpacked)
    return find_inputs(given, cfg.classes, cfg.class_names, num_workers, unpacked, cfg.label)


def _recipe(cfg: DictConfig, inputs: Inputs, vae: SDVAE | None) -> Recipe:
    return Recipe(
        kind=cfg.kind,
        payload=cfg.payload,
        quality=cfg.quality if cfg.payload == "jpg" else None,
        size=cfg.size,
        channels=cfg.channels,
        crop=CROP_RULE,
        background=cfg.background,
        records_per_shard=cfg.records_per_shard,
        autoencoder=None if vae is None else f"SD-VAE {weights_digest(vae.vae)}",
        images=len(inputs),
        inputs=inputs.fingerprint(),
    )


def _check(cfg: DictConfig) -> None:
    """Check every option on its own; raises UserError."""
    for key in ("in", "out", "size"):
        if OmegaConf.is_missing(cfg, key):
            raise UserError(f"{key} is not set; --help describes it")
    for key, known in (("kind", KINDS), ("payload", PAYLOADS)):
        if cfg[key] not in known:
            raise UserError(f"{key}={cfg[key]}: there is no such {key}; {suggestions(str(cfg[key]), known)}")
    check_background(cfg.background, "background")
    check_rule(cfg.label, "label")
    _check_kind_of_input(cfg)
    if cfg.channels not in (1, 3):
        raise UserError(f"channels={cfg.channels}: set it to 3 (colour) or 1 (grey)")
    if cfg.kind == "latents" and (cfg.payload != "npy" or cfg.channels != 3):
        raise UserError(
            f"kind=latents payload={cfg.payload} channels={cfg.channels}: latents need payload=npy channels=3"
        )


def _check_kind_of_input(cfg: DictConfig) -> None:
    """Raise UserError for options of tables with other inputs, or the reverse."""
    tables = str(cfg["in"]).startswith(PREFIX)
    others = {"classes": None, "class_names": None, "label": "auto"}
    columns = dict.fromkeys(("split", "subset", "image_column", "label_column"))
    for key, usual in (others if tables else columns).items():
        if cfg[key] != usual:
            remedy = "choose label_column=" if tables else f"it is for in={PREFIX}<set>"
            raise UserError(f"{key}={cfg[key]}: in={cfg['in']} does not take it; {remedy}, or leave it out")


def _out(cfg: DictConfig) -> Path:
    """Return the output folder; raises UserError if it is inside the input or no folder, or if the input is missing."""
    tables = str(cfg["in"]).startswith(PREFIX)
    source, out = Path(str(cfg["in"]).removeprefix(PREFIX)), Path(cfg.out)
    if not tables and not source.exists() and zip_of(source) is None and not set("{*?[") & set(str(source)):
        raise UserError(f"in={source}: no such file or folder; give class folders, a zip, or WebDataset tars")
    if source.exists() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"out={out}: that is inside in={source}; set another out")
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: it is not a folder; set another out")
    return out


def _autoencoder(cfg: DictConfig) -> SDVAE:
    """Return the loaded autoencoder for latents, with the normalisation of data=imagenet256_latents."""
    validate.torch_device(cfg.device)
    numbers = compose(["data=imagenet256_latents"]).decoder
    vae = replace(instantiate(numbers), weights=cfg.decoder.weights, batch_size=cfg.batch)
    if cfg.size % vae.scale:
        raise UserError(f"size={cfg.size}: the autoencoder needs a multiple of {vae.scale} pixels")
    vae.load()
    return vae


def _verify(cfg: DictConfig) -> None:
    """Verify all shards; print every problem and exit with 1 if there is any."""
    if OmegaConf.is_missing(cfg, "out"):
        raise UserError("out is not set; give the folder of shards to verify")
    out = Path(cfg.out)
    manifest = read_manifest(out, "out")
    with tqdm(total=manifest.count, desc="verifying", unit="record", mininterval=0.5) as bar:
        problems = verify(out, manifest, cfg.num_workers or all_cores(), lambda done: bar.update(done - bar.n))
    if problems:
        print("\n".join(problems), file=sys.stderr)
        print(
            f"error: {counted(len(problems), 'problem')} in {out}; they were made from in={manifest.origin}",
            file=sys.stderr,
        )
        sys.exit(1)
    print(f"{out}: no problems: {_contents(manifest)}")


def _contents(manifest: Manifest) -> str:
    size = amount(sum(shard.bytes for shard in manifest.shards))
    records, shards = counted(manifest.count, "record"), counted(len(manifest.shards), "shard")
    classes = counted(len(manifest.class_names), "class", "classes")
    what = f"{manifest.kind} {manifest.channels}x{manifest.resolution}x{manifest.resolution} as {manifest.payload}"
    return f"{records} of {classes} in {shards}, {size}, {what}"


def _report(out: str, made: ShardingResult) -> None:
    """Print what was made and where it is."""
    reused = f", {counted(made.reused, 'shard')} reused; inputs with the same names were not read again"
    speed = f"{counted(made.images, 'image')} in {made.seconds:.0f} s, {made.images / made.seconds:.0f} a second"
    speed = speed if made.images else "nothing was missing"
    print(f"{out}: {_contents(made.manifest)} ({speed}{reused if made.reused else ''})")
    if made.manifest.done:
        print(describe_conversions(made.manifest.done))
    if made.unreadable:
        print(f"skipped because they cannot be read: {counted(len(made.unreadable), 'input')}")
    if made.manifest.skipped:
        print(f"inputs that are not used are listed with the reason in {Path(out) / LIST}")
    empty = [name for name, count in zip(made.manifest.class_names, made.manifest.per_class, strict=True) if not count]
    if empty:
        classes = counted(len(empty), "class", "classes")
        print(f"{classes} without a record: {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}")
    data = "shards" if made.manifest.kind == "pixels" else "imagenet256_latents"
    print(f"to train on it: data={data} {path_argument('data.root', out)}")
    if made.unpacked:
        print(f"{made.unpacked:,} compressed tars or tables were read from copies, which are removed")


def run_and_show(cfg: DictConfig) -> None:
    """Make or verify shards and print the result; exits with 130 when interrupted, with 1 for damaged shards."""
    if cfg.verify:
        _verify(cfg)
        return
    try:
        made = run(cfg)
    except KeyboardInterrupt:
        print("stopped; finished shards are saved, the same command resumes", file=sys.stderr)
        sys.exit(130)
    _report(str(cfg.out), made)
