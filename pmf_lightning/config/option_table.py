"""Table of options: the kind of every key of every command's configuration (conf/).

A star matches any one name, two stars at the end match everything below. tests/config/test_options.py fails if a key
of conf/ is missing here. The meaning of options, and which numbers fit together, are checked where they are used.
"""

from collections.abc import Mapping
from functools import cache

from pmf_lightning.config.option_kinds import (
    ANYTHING,
    DEVICE,
    DEVICE_OR_AUTO,
    MOST,
    NAMES,
    PATH,
    PATHS,
    SHARE,
    TEXT,
    YES_NO,
    Kind,
    choice,
    either,
    integer,
    list_of,
    mapping,
    number,
    part,
)
from pmf_lightning.config.option_models import (
    BACKBONE,
    BATTERY,
    DRIFT_FEATURES,
    FEATURES,
    OBJECTIVE,
    OPTIMIZER,
    POSTTRAIN,
)
from pmf_lightning.config.option_sections import (
    CALLBACKS,
    CONDITION,
    CONDITIONS,
    COUNT,
    DECODES,
    EVALUATION,
    HOW_TO_SAMPLE,
    IMAGES,
    JUDGE,
    LISTED,
    LOGGERS,
    PAIR,
    POSITIVE,
    PROCESSES,
    SEED,
    SIDE,
    TRAINER,
    TRUST,
    WEIGHTS,
    Table,
    below,
    one_or_more,
)
from pmf_lightning.config.option_toys import TOY

BATTERY_CHOICE: Table = {
    "battery": mapping("members", "reference", words="choose one with battery=").or_null(),
    **below("battery", BATTERY),
}
RUN: Table = {
    "name": TEXT,
    "paper.**": ANYTHING,  # facts that nothing reads from the configuration (config/presets.py)
    "seed": SEED,
    "run_dir": PATH.or_null(),
    "flip": YES_NO,
    "augment": part(words="choose one with augment=").or_null(),
    **{f"augment.{key}": SHARE for key in ("p", "x_flip", "turned_axes")},
    **{f"augment.{key}": number(0) for key in ("scale", "stretch", "shift")},
    "ckpt": PATH.or_null(),
    "init_from": PATH.or_null(),
    "init_ema": TEXT.or_null(),
    "init_skip": NAMES,
    "trust": TRUST,
    "batch": COUNT,
    "train_images": COUNT.or_null(),
    "micro_batch": either(COUNT, choice("auto"), words="set it to an integer, 1 or more, or auto").or_null(),
    "images": COUNT,
    "steps": COUNT,
    "num_workers": either(PROCESSES, choice("auto"), words=f"{PROCESSES.words}, or auto"),
    "threads": either(integer(1, 4096), choice("auto"), words="set it to an integer, 1 or more, or auto").or_null(),
    "cache_dir": PATH.or_null(),
    "activation_checkpointing": YES_NO,
    "compile": YES_NO,
    "study": mapping("name", "scale", "arm", words="an experiment sets it; choose one with experiment=").or_null(),
    "study.**": ANYTHING,
    "matmul_precision": TEXT,
    "log_every_steps": COUNT,
    "diagnostics.t_bins": integer(1, 100_000),
    "skip_nonfinite.max_in_a_row": COUNT,
    "sync_tolerance": number(0).or_null(),
    "sample_grid.enabled": YES_NO,
    "sample_grid.every_images": COUNT,
    "sample_grid.rows": integer(1, 10_000),
    "sample_grid.columns": integer(1, 10_000),
    "checkpoint.every_images": COUNT,
    "checkpoint.keep_last": COUNT,
    "schedule.start": number(),
    "schedule.warmup_fraction": number(),
    "schedule.decay_fraction": number(),
    "schedule.decay_shape": choice("linear", "cosine"),
    "ema.halflife_kimg": list_of(number(above=0)),
    "ema.rampup_ratio": number(0).or_null(),
    "ema.device": choice("cpu").or_null(),
    "moments.device": choice("cpu").or_null(),
    "sampling.steps": integer(0),
    "sampling.sampler": TEXT.or_null(),
    "sampling.omega": number(),
    "sampling.t_min": number(),
    "sampling.t_max": number(),
    "sampling.ema": TEXT,
    "search.omega": LISTED,
    "search.intervals": list_of(PAIR, least=1),
    "search.ema": NAMES.or_null(),
    "search.steps": list_of(integer(), least=1),
    "search.sampler": NAMES,
    "queues.positives": COUNT,
    "queues.negatives": integer(0),
    "queues.push_per_step": COUNT,
    "queues.per_class": COUNT,
    "queues.global_size": COUNT,
    "queues.folder": PATH.or_null(),
    "conditions": CONDITIONS,
    "conditions.*": CONDITION,
    "conditions.*.kind": TEXT,
    **{f"conditions.*.{key}": integer(0) for key in ("tokens", "codes", "rows")},
    **EVALUATION,
    **BATTERY_CHOICE,
    "posttrain": part("encoders", "omega", words="choose one with posttrain=").or_null(),
    **below("posttrain", POSTTRAIN),
    "posttrain_lr": mapping(words="give rates by sampler, such as {average: 2e-5}, or set optimizer.lr=").or_null(),
    "posttrain_lr.*": POSITIVE,
    "decoder": DECODES.or_null(),
    "features": mapping(words="perceptual= sets the networks; choose one of this group"),
    "features.*": part(words="perceptual= sets the networks; choose one of this group"),
    **below("features.*", FEATURES),
    **below("drift_features", DRIFT_FEATURES),
    **below("trainer", TRAINER),
    **CALLBACKS,
    **LOGGERS,
    **below("objective", OBJECTIVE),
    **below("backbone", BACKBONE),
    **below("optimizer", OPTIMIZER),
}
SAMPLE: Table = {
    **RUN,  # of model= and data=, which describe a released file
    "ckpt": PATH,
    "out": PATH,
    "force": YES_NO,
    "n": IMAGES,
    "classes": list_of(
        either(integer(-MOST), TEXT, words=""), words="give a list of numbers or names, such as classes=[3,7]"
    ).or_null(),
    "seed": SEED,
    **HOW_TO_SAMPLE,
    "device": DEVICE,
    "batch_size": COUNT,
    "nearest_images": integer(0, MOST),
    "cache_dir": PATH.or_null(),
    "decoder": WEIGHTS,
    "decoder.weights": PATH.or_null(),
}
PLAY: Table = {
    "ckpt": PATHS,
    "trust": TRUST,
    "ema": TEXT.or_null(),
    "device": DEVICE_OR_AUTO,
    "host": TEXT,
    "port": integer(1, 65535),
    "open": YES_NO,
    "nearest_images": COUNT,
    "cache_dir": PATH.or_null(),
    "decoder": WEIGHTS,
    "decoder.weights": PATH.or_null(),
}
EVALUATE: Table = {
    **RUN,  # of model= and data=, which describe a released file
    **EVALUATION,
    **BATTERY_CHOICE,
    **below("judge", JUDGE),
    "ckpt": PATH.or_null(),
    "images": PATH.or_null(),
    "decoder": WEIGHTS,
    "reference": PATH.or_null(),
    "precision_recall_reference": PATH.or_null(),
    "n": integer(2, 100_000_000).or_null(),
    "out": PATH,
    "force": YES_NO,
    "save": TEXT,
    "background": TEXT,
    "seed": SEED,
    **HOW_TO_SAMPLE,
    "device": DEVICE,
    "batch_size": COUNT,
    "cache_dir": PATH.or_null(),
}
SEARCH: Table = {
    **EVALUATION,
    **LOGGERS,
    "ckpt": PATH,
    "trust": TRUST,
    "decoder": WEIGHTS,
    "reference": PATH.or_null(),
    "precision_recall_reference": PATH.or_null(),
    "omega": one_or_more(number(), "give a list of numbers, such as omega=[1,2,3]"),
    "intervals": either(
        list_of(number()),
        list_of(list_of(number())),
        words="each is a pair [t_min,t_max], such as intervals=[[0.1,0.7],[0,1]]; t=1 is noise",
    ).or_null(),
    "ema": one_or_more(either(TEXT, number()), "give a list of names, such as ema=[500k,1000k]"),
    "steps": one_or_more(integer(0), "give a list of integers, such as steps=[1,2]"),
    "sampler": one_or_more(TEXT, "give a list of names, such as sampler=[heun,euler]"),
    "strategy": TEXT,
    "n": integer(2, 100_000_000),
    "n_final": integer(2, 100_000_000).or_null(),
    "seed": SEED,
    "out": PATH,
    "shown": integer(1, 10_000),
    "device": DEVICE,
    "batch_size": COUNT,
    "cache_dir": PATH.or_null(),
}
STATS: Table = {
    **EVALUATION,
    "images": PATH.or_null(),
    "background": TEXT,
    "out": PATH,
    "force": YES_NO,
    "n": integer(2).or_null(),
    "features": integer(0),
    **BATTERY_CHOICE,
    "nystrom": integer(0),
    "bandwidth_scale": POSITIVE,
    "bank": integer(0),
    "device": DEVICE,
    "batch_size": COUNT,
    "num_workers": PROCESSES,
    "cache_dir": PATH.or_null(),
}
SHARD: Table = {
    "in": PATH,
    "out": PATH,
    "size": SIDE,
    "kind": TEXT,
    "background": TEXT,
    "payload": TEXT,
    "quality": integer(1, 100),
    "channels": integer(),
    "records_per_shard": COUNT,
    "num_workers": integer(1, 4096).or_null(),
    "max_unreadable": SHARE,
    "classes": COUNT.or_null(),
    "class_names": PATH.or_null(),
    "label": TEXT,
    **{key: TEXT.or_null() for key in ("split", "subset", "image_column", "label_column")},
    "verify": YES_NO,
    "decoder": WEIGHTS,
    "decoder.weights": PATH.or_null(),
    "device": DEVICE,
    "batch": COUNT,
}
CONVERT: Table = {
    **RUN,
    "in": PATH,
    "out": PATH,
    "ema": TEXT.or_null(),
    "format": TEXT.or_null(),
    "licence": TEXT,
    "vae": PATH.or_null(),
    "onnx.part": TEXT,
    "onnx.opset": integer(18, 30),
    "web.runtime": PATH.or_null(),
    "web.most_mb": number(above=0),
    "inference": YES_NO,
    "force": YES_NO,
    "trust": TRUST,
}
INFO: Table = {
    **RUN,
    "format": TEXT,
    "gpu_gb": number(above=0).or_null(),
    "gpus": list_of(integer(), least=1).or_null(),
    "every_model": YES_NO,
    "cluster.name": TEXT,
    **{f"cluster.{key}": COUNT for key in ("gpus_per_node",)},
    **{f"cluster.{key}": POSITIVE for key in ("peak_tflops", "memory_gb_s", "within_node_gb_s", "between_nodes_gb_s")},
    **{f"cluster.{key}": SHARE for key in ("share_of_peak", "newton_schulz_share", "share_of_bandwidth", "overlapped")},
    "cluster.backward_share": SHARE,
    "cluster.latency_us": number(0),
    "cluster.bucket_mb": POSITIVE,
}
BENCHMARK: Table = {
    **RUN,
    "what": TEXT,
    "repeats": integer(1, 1_000_000),
    "out": PATH.or_null(),
    "force": YES_NO,
    "images_at_once": COUNT.or_null(),
    "against": TEXT.or_null(),
    "sampling_batches": list_of(integer(), least=1),
    "curves": list_of(TEXT, least=1),
    **{
        f"growth.{curve}": list_of(mapping(words="give options that a point of the curve changes"), least=1)
        for curve in ("batch", "resolution", "tokens", "size")
    },
    "reader.originals": PATH.or_null(),
    "reader.images": COUNT,
    "reader.batch": COUNT,
    "reader.num_workers": list_of(PROCESSES, least=1),
}
DASHBOARD: Table = {
    "entity": TEXT.or_null(),
    "project": TEXT.or_null(),
    "group": TEXT.or_null(),
    "name": TEXT.or_null(),
    "measure": TEXT,
    "dry_run": YES_NO,
    "format": TEXT,
    "sections": ANYTHING,
    "sections.**": ANYTHING,
}
# Command -> its options.
COMMANDS: Mapping[str, Table] = {
    "train": RUN,
    "run": RUN,
    "sample": SAMPLE,
    "play": PLAY,
    "evaluate": EVALUATE,
    "search_guidance": SEARCH,
    "make_stats": STATS,
    "shard": SHARD,
    "convert": CONVERT,
    "info": INFO,
    "benchmark": BENCHMARK,
    "dashboard": DASHBOARD,
    "toy": TOY,
}


def kind_of(command: str, option: str) -> Kind | None:
    """Return the kind of ``option``, such as "data.root", in a command; None if the command has no such option."""
    table = COMMANDS[command]
    if option in table:
        return table[option]
    names = option.split(".")
    return next((kind for pattern, kind in _patterns(command) if _fits(pattern, names)), None)


@cache
def _patterns(command: str) -> list[tuple[list[str], Kind]]:
    return [(pattern.split("."), kind) for pattern, kind in COMMANDS[command].items() if "*" in pattern]


def _fits(pattern: list[str], names: list[str]) -> bool:
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        names = names[: len(pattern)] if len(names) > len(pattern) else []
    return len(names) == len(pattern) and all(star in ("*", name) for star, name in zip(pattern, names, strict=True))
