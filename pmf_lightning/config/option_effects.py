"""Options that do not change the results of a run; "*" stands for any text."""

# Options that are not compared: locations, loggers and the study.
UNSTATED = ("ckpt", "run_dir", "cache_dir", "study", "study.*", "logger", "logger.*")
# A finished run with other values of these options is not repeated: they do not change its results.
WITHOUT_EFFECT = (
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.strategy.*"),
    *("trainer.max_time", "trainer.profiler", "trainer.detect_anomaly"),
    *("micro_batch", "num_workers", "threads", "compile", "activation_checkpointing", "matmul_precision"),
    *("sync_tolerance", "backbone.attention", "ema.device", "moments", "moments.device"),
    *("log_every_steps", "diagnostics.*", "skip_nonfinite.*"),
    *("sample_grid.*", "checkpoint.*", "decoder.weights", "features.*.weights", "queues.folder", "search", "search.*"),
    *("battery.members.*.weights", "posttrain.micro_batch"),
)
