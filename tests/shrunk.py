"""Overrides that make a run tiny without changing its kind."""

BACKBONE = [
    "backbone.width=32",
    "backbone.attention_heads=2",
    "backbone.mlp_hidden=48",
    "backbone.trunk=1",
    "backbone.heads={u: 1, v: 1}",
    "backbone.bottleneck=8",
]
RUN = [
    *BACKBONE,
    "model=pmf_tiny",
    "batch=16",
    "images=480",
    "log_every_steps=1",
    "grid.every_images=160",
    "checkpoint.every_images=80",
    "metrics=none",
]
