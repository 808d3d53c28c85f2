"""Kinds of the options of the sections of a configuration, such as data, metrics or trainer.

Those of the network and its loss are in option_models.py. option_table.py puts the sections together for each command.
A star matches any one name, two stars at the end match everything below.
"""

from collections.abc import Mapping

from pmf_lightning.config.option_kinds import (
    ANYTHING,
    DURATION,
    LARGEST_SEED,
    PATH,
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

Table = Mapping[str, Kind]

COUNT, SEED = integer(1), integer(0, LARGEST_SEED)
PROCESSES = integer(0, 4096)
POSITIVE, PAIR = number(above=0), list_of(number(), length=2)
SIDE = integer(1, 100_000)  # of an image, in pixels
IMAGES = integer(1, 100_000_000)  # sampled or evaluated in one call
LISTED = list_of(number(), least=1)


def below(prefix: str, table: Table) -> dict[str, Kind]:
    """Return a table with ``prefix.`` in front of every key."""
    return {f"{prefix}.{key}": kind for key, kind in table.items()}


def one_or_more(kind: Kind, words: str) -> Kind:
    """Return the kind of one value or a list of them, or null."""
    return either(kind, list_of(kind, least=1), words=words).or_null()


TRAINED: Table = {  # encoders that are trained on the data at hand
    "seed": SEED,
    "steps": COUNT,
    "batch": COUNT,
    "lr": POSITIVE,
    "warmup_steps": integer(0),
    "weight_decay": number(0),
}
CLASSIFIER: Table = {
    **TRAINED,
    **{"side": SIDE, "features": COUNT, "shift": SHARE},
    "architecture": choice("convolutional", "mlp"),
}
ENCODER: Table = {
    "name": TEXT,
    "model": TEXT,
    "weights": PATH.or_null(),
    "download": YES_NO,
    "side": SIDE.or_null(),
    "mean": list_of(number(), length=3).or_null(),
    "std": list_of(number(above=0), length=3).or_null(),
    "interpolation": choice("bicubic", "bilinear").or_null(),
    "pool": choice("head", "token", "patches", "map"),
    "width": COUNT.or_null(),
    "resize": choice("tensorflow1", "half_pixel"),
    "output": either(integer(0), TEXT),
    "remote_code": YES_NO.or_null(),
    "folder": TEXT,
    "cell": COUNT,
    "option": TEXT,
}
MASKED_AUTOENCODER: Table = {"base_channels": COUNT, "blocks": list_of(integer(), least=1)}
MASKING: Table = {
    "cell": COUNT,
    "mask_fraction": SHARE,
    "class_weight": SHARE,
    "class_steps": integer(0),
    "class_warmup": integer(0),
}
DATA: Table = {
    "name": TEXT,
    "root": PATH.or_null(),
    "resolution": SIDE,
    "channels": integer(1, 4096),
    "classes": COUNT,
    "images": COUNT,
    "held_out_images": COUNT,
    "held_out_fraction": SHARE,
    "max_bad": SHARE,
    "draw": TEXT,
    "unreadable": choice("skip", "fail"),
    "background": TEXT,
    "cache_dir": PATH.or_null(),
    "dataset": TEXT,
    "train_splits": list_of(TEXT, least=1),
    "held_out_splits": list_of(TEXT),
    "download": YES_NO,
    "label": TEXT.or_null(),
    "subset": TEXT.or_null(),
    "split": TEXT,
    "held_out_split": TEXT.or_null(),
    "image_column": TEXT.or_null(),
    "label_column": TEXT.or_null(),
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
JUDGE: Table = {
    "pixels": choice("float", "uint8"),
    "precision": choice("float32", "bfloat16"),
    "directions": integer(0),
    "sliced_images": integer(2),
    "spread_draws": integer(0),
}
EXTRACTOR: Table = {
    "name": TEXT,
    "model": TEXT,
    "resize": TEXT,
    "features": COUNT,
    "repository": PATH.or_null(),
    "weights": PATH.or_null(),
    "download": YES_NO,
    "batch": COUNT,
    "channels": list_of(integer(), least=1),
    "module": part(words="give what Hydra builds, such as {_target_: package.Network}"),
    "module.**": ANYTHING,
    **below("settings", CLASSIFIER),
    **{key: ENCODER[key] for key in ("side", "mean", "std", "interpolation", "pool")},
    **below("encoder", ENCODER),
}
METRICS: Table = {
    "enabled": YES_NO,
    "every_images": COUNT,
    "extra_steps": list_of(integer()),
    "reference_images": COUNT.or_null(),
    "batch_size": COUNT,
    "n": integer(2, 100_000_000).or_null(),  # metrics=fid needs it
    "reference": PATH.or_null(),
    **{name: JUDGE[name] for name in ("pixels", "precision", "directions", "sliced_images")},
    "extractors": mapping(words="add one: +extractor@metrics.extractors.lite0=lite0, or choose metrics=small_lite0"),
    "extractors.*": part(words="add one: +extractor@metrics.extractors.lite0=lite0, or choose metrics=small_lite0"),
    **below("extractors.*", EXTRACTOR),
    **below("classifier", CLASSIFIER),
}
DECODES = part(
    *("weights", "repository", "mean", "std", "scale", "batch_size"),
    words="data of latents set it (data=imagenet256_latents); set what is below it, such as decoder.weights",
)
WEIGHTS = Kind("set decoder.weights=", lambda value: isinstance(value, Mapping) and "weights" in value)
CONDITION = mapping(words="give what the network gets of it, such as {tokens: 2}")
CONDITIONS = mapping(words="give what the network gets of each, such as {label: {tokens: 2}}")
EVALUATION: Table = {
    **below(
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
    **below("extractor", EXTRACTOR),
    **below("metrics", METRICS),
    **below("data", DATA),
    "decoder": WEIGHTS.or_null(),
    **below("decoder", DECODER),
}
TRAINER: Table = {
    "accelerator": choice("cpu", "gpu", "cuda", "mps", "auto"),
    "devices": either(
        integer(1, 100_000),
        choice("auto"),
        integer(-1, -1),  # all, as auto
        list_of(integer(0), least=1),
        words="give how many there are (1 or more), auto for all, or a list of their numbers, such as [0,1]",
    ),
    "num_nodes": integer(1, 100_000),
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
    "steps": integer(0, words="give one integer").or_null(),
    "sampler": TEXT.or_null(),
    "omega": number().or_null(),
    "t_min": number().or_null(),
    "t_max": number().or_null(),
    "ema": TEXT.or_null(),
}
