"""Table of options: the kind of every key of every command's configuration (conf/).

A star matches any one name, two stars at the end match everything below. tests/config/test_options.py fails if a key
of conf/ is missing here. The meaning of options, and which numbers fit together, are checked where they are used.
"""

from collections.abc import Mapping
from functools import cache

from pmf_lightning.config.option_kinds import (
    ANYTHING,
    DEVICE,
    DURATION,
    LARGEST_SEED,
    MOST,
    NAMES,
    PATH,
    SHARE,
    TEXT,
    YES_NO,
    Kind,
    choice,
    either,
    list_of,
    mapping,
    number,
    part,
    whole,
)

Table = Mapping[str, Kind]

COUNT, SEED = whole(1), whole(0, LARGEST_SEED)
PROCESSES = whole(0, 4096)
POSITIVE, PAIR = number(above=0), list_of(number(), length=2)
SIDE = whole(1, 100_000)  # of an image, in pixels
IMAGES = whole(1, 100_000_000)  # sampled or evaluated in one call
LISTED = list_of(number(), least=1)


def _below(prefix: str, table: Table) -> dict[str, Kind]:
    return {f"{prefix}.{key}": kind for key, kind in table.items()}


def _one_or_more(kind: Kind, words: str) -> Kind:
    """Return the kind of one value or a list of them, or null."""
    return either(kind, list_of(kind, least=1), words=words).or_null()


CLASSIFIER: Table = {
    "seed": SEED,
    "side": SIDE,
    "features": COUNT,
    "steps": COUNT,
    "batch": COUNT,
    "lr": POSITIVE,
    "warmup_steps": whole(0),
    "weight_decay": number(0),
    "shift": SHARE,
}
DATA: Table = {
    "name": TEXT,
    "root": PATH.or_null(),
    "resolution": SIDE,
    "channels": whole(1, 4096),
    "classes": COUNT,
    "images": COUNT,
    "held_out_images": COUNT,
    "held_out_fraction": SHARE,
    "max_bad": SHARE,
    "draw": TEXT,
    "unreadable": choice("skip", "fail"),
    "background": TEXT,
    "cache_dir": PATH.or_null(),
}
DECODER: Table = {
    "weights": PATH.or_null(),
    "repository": TEXT,
    "mean": LISTED,
    "std": LISTED,
    "scale": COUNT,
    "batch_size": COUNT,
    "architecture.**": ANYTHING,
}
METRICS: Table = {
    "enabled": YES_NO,
    "every_images": COUNT,
    "extra_steps": list_of(whole()),
    "reference_images": COUNT.or_null(),
    "batch_size": COUNT,
    "n": whole(2, 100_000_000),
    "reference": PATH.or_null(),
    **_below("classifier", CLASSIFIER),
}
DECODES = part(
    *("weights", "repository", "mean", "std", "scale", "batch_size"),
    words="data of latents set it (data=imagenet256_latents); set what is below it, such as decoder.weights",
)
WEIGHTS = Kind("set decoder.weights=", lambda value: isinstance(value, Mapping) and "weights" in value)
CONDITION = mapping(words="give what the network gets of it, such as {tokens: 2}")
CONDITIONS = mapping(words="give what the network gets of each, such as {label: {tokens: 2}}")
JUDGES: Table = {
    **_below(
        "protocol",
        {
            "name": TEXT,
            "quantiser": TEXT,
            "resize": TEXT,
            "n": COUNT,
            "extractor": TEXT,
            "inception_splits": COUNT,
            "inception_shuffle": YES_NO,
            "kid_subsets": COUNT,
            "kid_size": COUNT,
            "neighbours": COUNT,
            "reference_images": COUNT,
            "seed": SEED,
            "reference.dialect": TEXT,
            "reference.files.*": TEXT,
            "reference.precision_recall.*": TEXT,
            "reference.others.**": ANYTHING,  # file name -> description
            "reference.where": TEXT,
        },
    ),
    **_below(
        "extractor",
        {
            "name": TEXT,
            "model": TEXT,
            "resize": TEXT,
            "features": COUNT,
            "repository": PATH.or_null(),
            "weights": PATH.or_null(),
            "download": YES_NO,
            "batch": COUNT,
            "channels": list_of(whole(), least=1),
            "module": part(words="give what Hydra builds, such as {_target_: package.Network}"),
            "module.**": ANYTHING,
            **_below("settings", CLASSIFIER),
        },
    ),
    **_below("metrics", METRICS),
    **_below("data", DATA),
    "decoder": WEIGHTS.or_null(),
    **_below("decoder", DECODER),
}
OBJECTIVE: Table = {
    "prediction": TEXT,
    "loss": TEXT,
    "noise_scale": POSITIVE,
    "P_mean": number(),
    "P_std": number(0),
    "uniform_fraction": SHARE,
    "time_sampling": TEXT,
    "time_samplings.**": ANYTHING,
    "flow_matching_fraction": SHARE,
    "r_law": TEXT,
    "omega_min": number(),
    "omega_max": number(),
    "omega_beta": number(),
    "label_dropout": SHARE,
    "t_clip": number(),
    "t_thr": number(),
    "weight_power": number(),
    "weight_eps": number(),
    "jvp": TEXT,
    "v_target": TEXT,
    "v_source": TEXT,
    "jvp_tangent": TEXT,
    "sample_interval": YES_NO,
    "time_order": TEXT,
    "preconditioner": part(words="choose one with preconditioner=, which is a group").or_null(),
    "preconditioner.sigma_data": POSITIVE,
    "perceptual": mapping(words="give the weight of each distance, such as {lpips: 0.4}, or {} for none"),
    "perceptual.*": number(0),
    "crop": part("area", "ratio", words="set objective.crop.area= and objective.crop.ratio=").or_null(),
    "crop.area": PAIR,
    "crop.ratio": PAIR,
    "samples_per_label": COUNT,
    "alpha_max": number(),
    "alpha_power": number(),
    "unguided_fraction": SHARE,
    "style_codes": whole(0),
    "style_values": COUNT,
    "temperatures": list_of(number(above=0), least=1),
    "attraction": number(),
    "repulsion": number(),
    "normalisation": TEXT,
    "patch": COUNT,
    "cell": COUNT,
    "mask_fraction": SHARE,
    "class_weight": SHARE,
    "class_steps": whole(0),
    "class_warmup": whole(0),
    "steps": COUNT,
    "flip": YES_NO,
}
BACKBONE: Table = {
    "size": TEXT,
    "sizes.**": ANYTHING,
    "resolution": SIDE,
    "channels": COUNT,
    "classes": COUNT,
    "conditions": CONDITIONS,
    "conditions.**": ANYTHING,
    "patch": SIDE,
    "width": COUNT,
    "num_heads": COUNT,
    "mlp_dim": COUNT,
    "depth": whole(0),
    "heads": mapping(words="give the blocks of each head, such as {u: 2, v: 2}").or_null(),  # null if there are none
    "heads.*": whole(0),
    "bottleneck": COUNT.or_null(),
    "block_gain": number(0),
    "rope": TEXT,
    "rope_theta": POSITIVE,
    "positions": TEXT,
    "attention": TEXT,
    "context": whole(0),
    "context_start": whole(0),
    "dropout": SHARE,
    "attention_dropout": SHARE,
    "codes": whole(0),
    "rows": COUNT,
    "base_channels": COUNT,
    "blocks": list_of(whole(), least=1),
}
OPTIMIZER: Table = {
    "lr": number(),  # the optimizers check that it is positive
    "betas": PAIR,
    "eps": number(0),
    "distribute": YES_NO,
    "weight_decay": number(0),
}
FEATURES: Table = {
    "network": TEXT,
    "weights": PATH.or_null(),
    "side": SIDE,
    "norm_eps": number(0),
    **_below("settings", CLASSIFIER),
}
DRIFT_FEATURES: Table = {
    "path": PATH.or_null(),
    "sets": TEXT,
    "every_block": COUNT,
    **_below("convnext", FEATURES),
    **_below(
        "settings",
        {
            "seed": SEED,
            "patch": SIDE,
            "base_channels": COUNT,
            "blocks": list_of(whole(), least=1),
            "cell": COUNT,
            "mask_fraction": SHARE,
            "class_weight": SHARE,
            "class_steps": whole(0),
            "class_warmup": whole(0),
            "steps": COUNT,
            "batch": COUNT,
            "lr": POSITIVE,
            "warmup_steps": whole(0),
            "weight_decay": number(0),
            "clip": POSITIVE,
        },
    ),
}
TRAINER: Table = {
    "accelerator": choice("cpu", "gpu", "cuda", "mps", "auto"),
    "devices": either(
        whole(1, 100_000),
        choice("auto"),
        whole(-1, -1),  # all, as auto
        list_of(whole(0), least=1),
        words="give how many there are (1 or more), auto for all, or a list of their numbers, such as [0,1]",
    ),
    "num_nodes": whole(1, 100_000),
    "strategy": either(
        TEXT,
        part(words=""),
        words="give a name, such as auto, or choose a trainer that has one (trainer=ddp, trainer=fsdp)",
    ),
    "strategy.find_unused_parameters": YES_NO,
    "strategy.static_graph": YES_NO,
    "strategy.gradient_as_bucket_view": YES_NO,
    "strategy.gather_dtype": TEXT.or_null(),
    "precision": TEXT,
    "gradient_clip_val": number(0).or_null(),
    "gradient_clip_algorithm": choice("norm", "value").or_null(),
    "max_time": DURATION.or_null(),
    "deterministic": either(YES_NO, choice("warn"), words="give true, false or warn").or_null(),
    "benchmark": YES_NO.or_null(),
    "detect_anomaly": YES_NO.or_null(),
    "profiler": choice("simple", "advanced", "pytorch").or_null(),
}
CALLBACKS: Table = {
    "callbacks": mapping(words="choose them with callbacks=, or add one: +callbacks.mine._target_=package.Class"),
    "callbacks.early_stopping.monitor": TEXT,
    "callbacks.early_stopping.mode": choice("min", "max"),
    "callbacks.early_stopping.patience": COUNT,
    "callbacks.early_stopping.min_delta": number(0),
    "callbacks.early_stopping.stopping_threshold": number().or_null(),
    "callbacks.early_stopping.divergence_threshold": number().or_null(),
    "callbacks.lr_monitor.logging_interval": choice("step"),
    "callbacks.lr_monitor.log_momentum": YES_NO,
    "callbacks.lr_monitor.log_weight_decay": YES_NO,
    "callbacks.device_stats.cpu_stats": YES_NO.or_null(),
}
LOGGERS: Table = {
    "logger": mapping(words="choose them with logger=, or add one: +logger.mine._target_=package.Class"),
    "logger.wandb": part("project", "entity", "group", "name", "mode", words="set it with logger=wandb").or_null(),
    **{f"logger.{name}.save_dir": PATH.or_null() for name in ("tensorboard", "csv", "mlflow")},
    **{f"logger.{name}.name": ANYTHING for name in ("tensorboard", "csv")},  # may be empty
    "logger.tensorboard.version": ANYTHING,
    "logger.mlflow.experiment_name": TEXT,
    "logger.mlflow.run_name": TEXT.or_null(),
    "logger.mlflow.tracking_uri": TEXT.or_null(),
    **{f"logger.wandb.{key}": TEXT.or_null() for key in ("entity", "group", "name", "mode")},
    "logger.wandb.project": TEXT,
}
TRUST = list_of(TEXT, words="give a list of packages, such as trust=[my_flow]")
HOW_TO_SAMPLE: Table = {
    "trust": TRUST,
    "steps": whole(0, words="give one whole number").or_null(),
    "sampler": TEXT.or_null(),
    "omega": number().or_null(),
    "t_min": number().or_null(),
    "t_max": number().or_null(),
    "ema": TEXT.or_null(),
}

RUN: Table = {
    "name": TEXT,
    "paper.**": ANYTHING,  # facts that nothing reads from the configuration (config/presets.py)
    "seed": SEED,
    "run_dir": PATH.or_null(),
    "flip": YES_NO,
    "ckpt": PATH.or_null(),
    "batch": COUNT,
    "train_images": COUNT.or_null(),
    "micro_batch": COUNT.or_null(),
    "images": COUNT,
    "steps": COUNT,
    "num_workers": PROCESSES,
    "cache_dir": PATH.or_null(),
    "activation_checkpointing": YES_NO,
    "compile": YES_NO,
    "study": mapping("name", "scale", "arm", words="an experiment sets it; choose one with experiment=").or_null(),
    "study.**": ANYTHING,
    "matmul_precision": TEXT,
    "log_every_steps": COUNT,
    "diagnostics.t_bins": whole(1, 100_000),
    "skip_nonfinite.max_in_a_row": COUNT,
    "sync_tolerance": number(0).or_null(),
    "sample_grid.enabled": YES_NO,
    "sample_grid.every_images": COUNT,
    "sample_grid.rows": whole(1, 10_000),
    "sample_grid.columns": whole(1, 10_000),
    "checkpoint.every_images": COUNT,
    "checkpoint.keep_last": COUNT,
    "schedule.start": number(),
    "schedule.warmup_fraction": number(),
    "schedule.decay_fraction": number(),
    "ema.halflife_kimg": list_of(number(above=0)),
    "ema.rampup_ratio": number(0).or_null(),
    "sampling.steps": whole(0),
    "sampling.sampler": TEXT.or_null(),
    "sampling.omega": number(),
    "sampling.t_min": number(),
    "sampling.t_max": number(),
    "sampling.ema": TEXT,
    "search.omega": LISTED,
    "search.intervals": list_of(PAIR, least=1),
    "search.ema": NAMES.or_null(),
    "search.steps": list_of(whole(), least=1),
    "search.sampler": NAMES,
    "queues.positives": COUNT,
    "queues.negatives": whole(0),
    "queues.push_per_step": COUNT,
    "queues.per_class": COUNT,
    "queues.global_size": COUNT,
    "queues.folder": PATH.or_null(),
    "conditions": CONDITIONS,
    "conditions.*": CONDITION,
    "conditions.*.kind": TEXT,
    **{f"conditions.*.{key}": whole(0) for key in ("tokens", "codes", "rows")},
    **JUDGES,
    "decoder": DECODES.or_null(),
    "features": mapping(words="perceptual= sets the networks; choose one of this group"),
    "features.*": part(words="perceptual= sets the networks; choose one of this group"),
    **_below("features.*", FEATURES),
    **_below("drift_features", DRIFT_FEATURES),
    **_below("trainer", TRAINER),
    **CALLBACKS,
    **LOGGERS,
    **_below("objective", OBJECTIVE),
    **_below("backbone", BACKBONE),
    **_below("optimizer", OPTIMIZER),
}
SAMPLE: Table = {
    "ckpt": PATH,
    "out": PATH,
    "n": IMAGES,
    "classes": list_of(whole(-MOST), words="give a list of numbers, such as classes=[3,7]").or_null(),
    "seed": SEED,
    **HOW_TO_SAMPLE,
    "device": DEVICE,
    "batch_size": COUNT,
    "decoder": WEIGHTS,
    "decoder.weights": PATH.or_null(),
}
EVALUATE: Table = {
    **JUDGES,
    "ckpt": PATH.or_null(),
    "images": PATH.or_null(),
    "decoder": WEIGHTS,
    "reference": PATH.or_null(),
    "precision_recall_reference": PATH.or_null(),
    "n": whole(2, 100_000_000).or_null(),
    "out": PATH,
    "save": TEXT,
    "background": TEXT,
    "seed": SEED,
    **HOW_TO_SAMPLE,
    "device": DEVICE,
    "batch_size": COUNT,
    "cache_dir": PATH.or_null(),
}
SEARCH: Table = {
    **JUDGES,
    **LOGGERS,
    "ckpt": PATH,
    "trust": TRUST,
    "decoder": WEIGHTS,
    "reference": PATH.or_null(),
    "precision_recall_reference": PATH.or_null(),
    "omega": _one_or_more(number(), "give a list of numbers, such as omega=[1,2,3]"),
    "intervals": either(
        list_of(number()),
        list_of(list_of(number())),
        words="each is a pair [t_min,t_max], such as intervals=[[0.1,0.7],[0,1]]; t=1 is noise",
    ).or_null(),
    "ema": _one_or_more(either(TEXT, number()), "give a list of names, such as ema=[500k,1000k]"),
    "steps": _one_or_more(whole(0), "give a list of whole numbers, such as steps=[1,2]"),
    "sampler": _one_or_more(TEXT, "give a list of names, such as sampler=[heun,euler]"),
    "strategy": TEXT,
    "n": whole(2, 100_000_000),
    "n_final": whole(2, 100_000_000).or_null(),
    "seed": SEED,
    "out": PATH,
    "shown": whole(1, 10_000),
    "device": DEVICE,
    "batch_size": COUNT,
    "cache_dir": PATH.or_null(),
}
STATS: Table = {
    **JUDGES,
    "images": PATH.or_null(),
    "background": TEXT,
    "out": PATH,
    "n": whole(2).or_null(),
    "features": whole(0),
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
    "quality": whole(1, 100),
    "channels": whole(),
    "records_per_shard": COUNT,
    "num_workers": whole(1, 4096).or_null(),
    "max_unreadable": SHARE,
    "classes": COUNT.or_null(),
    "class_names": PATH.or_null(),
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
    "inference": YES_NO,
    "force": YES_NO,
    "trust": TRUST,
}
INFO: Table = {
    **RUN,
    "format": TEXT,
    "gpu_gb": number(above=0).or_null(),
    "gpus": list_of(whole(), least=1).or_null(),
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
    "repeats": whole(1, 1_000_000),
    "out": PATH.or_null(),
    "images_at_once": COUNT.or_null(),
    "against": TEXT.or_null(),
    "sampling_batches": list_of(whole(), least=1),
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
TOY: Table = {
    "out": PATH,
    "experiment": TEXT,
    "ckpt": PATH,
    **HOW_TO_SAMPLE,
    "device": DEVICE,
    "seed": SEED,
    "n": IMAGES,
    "shown": COUNT,
    "path_times": list_of(SHARE, least=2),
    "heun_steps": COUNT,
    "dimensions": list_of(whole(), least=1),
    "predictions": NAMES,
    "seeds": list_of(SEED, least=1),
    "plane_seed": SEED,
    "radius": POSITIVE,
    "network.width": COUNT,
    "network.depth": COUNT,
    "network.scalars": NAMES,
    "network.heads": NAMES,
    "steps": COUNT,
    "batch": COUNT,
    "problems": COUNT,
    "samples": COUNT,
    "positives": COUNT,
    "modes.centres": list_of(PAIR, least=1),
    "modes.spread": number(0),
    "starts.*.centre": PAIR,
    "starts.*.spread": number(0),
    "schedule.warmup_fraction": SHARE,
    "schedule.decay_fraction": SHARE,
    "loss.temperatures": list_of(number(above=0), least=1),
    "loss.attraction": number(),
    "loss.repulsion": number(),
    "loss.normalisation": TEXT,
    "loss.affinity_floor": number(0),
    "evaluation.seed": SEED,
    **{f"evaluation.{key}": COUNT for key in ("points", "directions", "batches", "steps", "shown", "every")},
    "evaluation.near": POSITIVE,
    "evaluation.loss": TEXT,
    "evaluation.sampler": TEXT,
    "film.frames": COUNT,
    "film.shown": COUNT,
    "conditions": ANYTHING,
    "conditions.**": ANYTHING,
    "features": ANYTHING,
    "features.**": ANYTHING,
    **_below("objective", OBJECTIVE),
    **_below("optimizer", OPTIMIZER),
}
# Command -> its options.
COMMANDS: Mapping[str, Table] = {
    "train": RUN,
    "run": RUN,
    "sample": SAMPLE,
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
