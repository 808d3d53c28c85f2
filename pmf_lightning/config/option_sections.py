"""Kinds of the options of each section of a configuration, such as data, objective or trainer.

option_table.py puts the sections together for each command. A star matches any one name, two stars at the end match
everything below.
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
    "t_clip": SHARE,
    "t_thr": number(),
    "weight_power": number(0),
    "weight_eps": number(0),
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
    "style_codes": integer(0),
    "style_values": COUNT,
    "temperatures": list_of(number(above=0), least=1),
    "attraction": number(0),
    "repulsion": number(0),
    "normalisation": TEXT,
    "affinity_floor": number(0),
    "patch": COUNT,
    **MASKING,
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
    "depth": integer(0),
    "heads": mapping(words="give the blocks of each head, such as {u: 2, v: 2}").or_null(),  # null if there are none
    "heads.*": integer(0),
    "bottleneck": COUNT.or_null(),
    "block_gain": number(0),
    "rope": TEXT,
    "rope_theta": POSITIVE,
    "positions": TEXT,
    "attention": TEXT,
    "context": integer(0),
    "context_start": integer(0),
    "dropout": SHARE,
    "attention_dropout": SHARE,
    "codes": integer(0),
    "rows": COUNT,
    "augment": integer(0),
    **MASKED_AUTOENCODER,
}
MAE: Table = {**TRAINED, **MASKED_AUTOENCODER, **MASKING, "patch": SIDE, "clip": POSITIVE}
BATTERY: Table = {
    "reference": PATH.or_null(),
    "floors": mapping(words="give the distance of validation images by encoder, or null to measure it").or_null(),
    "floors.*": number(above=0),
    "members": mapping(words="give encoders by name, or choose battery="),
    "members.*": part(words="give what Hydra builds, such as {_target_: package.Encoder}"),
    **below("members.*", ENCODER),
    **below("members.*.settings", MAE | CLASSIFIER),
    "members.*.**": ANYTHING,  # of encoders of other kinds
}
POSTTRAIN: Table = {
    "name": TEXT,
    "encoders": list_of(TEXT, words="give a list of members of battery=, such as posttrain.encoders=[classifier0]"),
    "weights": mapping(words="give the weights of encoders, such as {classifier0: 2}, or null for 1").or_null(),
    "weights.*": number(0),
    "controller": mapping("total", "softmax", words="add one by +controller=gated (mmd and rdm have it)").or_null(),
    "controller.proportional": number(0),
    "controller.integral": number(0),
    "controller.derivative": number(0),
    "controller.smoothing": SHARE,
    "controller.relative": YES_NO,
    "controller.softmax": YES_NO,
    "controller.total": POSITIVE.or_null(),
    "controller.temperature": POSITIVE,
    "controller.error_clip": POSITIVE,
    "controller.most": POSITIVE,
    "joint": number(0).or_null(),
    "omega": number(),
    "t_min": number(),
    "t_max": number(),
    "clamp": YES_NO,
    "batch": COUNT,
    "micro_batch": COUNT.or_null(),
    "discrepancy": part("_target_", words="choose one with discrepancy="),
    "discrepancy.population": choice("ema", "queue", "batch"),
    "discrepancy.rows": integer(2),
    "discrepancy.beta": SHARE,
    "discrepancy.eps": POSITIVE,
    "discrepancy.ridge": number(0),
    "discrepancy.landmarks": COUNT,
    "discrepancy.scale": POSITIVE,
    "discrepancy.seed": SEED,
    "discrepancy.frequencies": COUNT,
    "discrepancy.directions": COUNT,
    "discrepancy.temperatures": list_of(number(above=0), least=1),
}
OPTIMIZER: Table = {
    "lr": number(),  # the optimizers check that it is positive
    "betas": PAIR,
    "eps": number(0),
    "distribute": YES_NO,
    "ns_dtype": choice("auto", "float32", "bfloat16"),
    "weight_decay": number(0),
}
FEATURES: Table = {
    "network": TEXT,
    "weights": PATH.or_null(),
    "side": SIDE,
    "norm_eps": number(0),
    **below("settings", CLASSIFIER),
    **below("encoder", ENCODER),
}
DRIFT_FEATURES: Table = {
    "path": PATH.or_null(),
    "sets": TEXT,
    "every_block": COUNT,
    **below("convnext", FEATURES),
    "classifier": part("seed", "side", words="give the settings of conf/classifier").or_null(),
    **below("classifier", CLASSIFIER),
    **below("network.encoder", ENCODER),
    **below("settings", MAE),
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
