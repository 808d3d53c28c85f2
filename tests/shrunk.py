"""Overrides that make a run tiny without changing its kind."""

BACKBONE = [
    "backbone.width=32",
    "backbone.attention_heads=2",
    "backbone.mlp_hidden=48",
    "backbone.trunk=1",
    "backbone.heads={u: 1, v: 1}",
    "backbone.bottleneck=8",
]
JIT_BACKBONE = [*BACKBONE[:4], "backbone.context_start=0", BACKBONE[5]]  # of JiT's own network


def backbone(model: str) -> list[str]:
    """What shrinks the backbone of a preset."""
    return JIT_BACKBONE if model.startswith("jit_") and model != "jit_tiny" else BACKBONE


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
