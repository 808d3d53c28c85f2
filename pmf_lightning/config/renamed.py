"""Options that have a new name: old names are refused with the new one, and stored configurations are converted."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

# Old option -> its new last name. A star matches any one name. Parents are written by their old names.
RENAMED = {
    "workers": "num_workers",
    "reader.workers": "num_workers",
    "chunk": "batch_size",
    "metrics.chunk": "batch_size",
    "decoder.chunk": "batch_size",
    "method": "sampler",
    "sampling.method": "sampler",
    "search.method": "sampler",
    "evaluation.method": "sampler",
    "recompute": "activation_checkpointing",
    "times": "objective.time_sampling",
    "grid": "sample_grid",
    "non_finite": "skip_nonfinite",
    "non_finite.stop_after": "max_in_a_row",
    "ema.half_lives_kimg": "halflife_kimg",
    "ema.ramp": "rampup_ratio",
    "schedule.warm_up": "warmup_fraction",
    "schedule.decay": "decay_fraction",
    "optimizer.split": "distribute",
    "queues.overall": "global_size",
    "queues.push": "push_per_step",
    "metrics.classifier.warm_up": "warmup_steps",
    "extractor.settings.warm_up": "warmup_steps",
    "features.*.settings.warm_up": "warmup_steps",
    "drift_features.settings.warm_up": "warmup_steps",
    "drift_features.settings.class_rise": "class_warmup",
    "backbone.trunk": "depth",
    "backbone.mlp_hidden": "mlp_dim",
    "backbone.attention_heads": "num_heads",
    "objective.derivative": "jvp",
    "objective.tied_fraction": "flow_matching_fraction",
    "objective.free_r": "r_law",
    "objective.target": "v_target",
    "objective.velocity": "v_source",
    "objective.tangent": "jvp_tangent",
    "objective.interval": "sample_interval",
    "objective.label_drop": "label_dropout",
    "objective.generated": "samples_per_label",
    "objective.alpha_one": "unguided_fraction",
    "objective.styles": "style_codes",
    "objective.style_rows": "style_values",
    "objective.mirror": "flip",
    "objective.class_rise": "class_warmup",
}
_STARRED = {pattern: name for pattern, name in RENAMED.items() if "*" in pattern}


def new_name(option: str) -> str:
    """Return today's name of a dotted option; an option that was not renamed is returned unchanged."""
    return ".".join(_new_parts(option))


def _new_parts(option: str) -> Iterator[str]:
    parts = option.split(".")
    for end, part in enumerate(parts, start=1):
        yield _last_name(".".join(parts[:end]), part)


def _last_name(option: str, last: Any) -> Any:
    found = (name for pattern, name in _STARRED.items() if fnmatchcase(option, pattern))
    return RENAMED.get(option) or next(found, last)


def rename_options(config: Mapping[Any, Any], above: str = "") -> dict[Any, Any]:
    """Convert a stored configuration (plain data) to today's names of its options, at every depth."""
    return {
        _last_name(f"{above}{key}", key): rename_options(value, f"{above}{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
    }
