"""Overrides that make a run tiny without changing its kind."""

BACKBONE = [
    "backbone.width=32",
    "backbone.num_heads=2",
    "backbone.mlp_dim=48",
    "backbone.depth=1",
    "backbone.heads={u: 1, v: 1}",
    "backbone.bottleneck=8",
]


def backbone(model: str) -> list[str]:
    """What shrinks the backbone of a preset: the shared one, or the own networks of JiT, drifting and its encoders."""
    if model.startswith("mae_"):
        return ["backbone.base_channels=32", "backbone.blocks=[1, 1, 1, 1]"]
    if model.endswith(("_tiny", "_digits")) or model[:3] in ("pmf", "imf"):
        return BACKBONE
    return [*BACKBONE[:4], *(["backbone.context_start=0", BACKBONE[5]] if model.startswith("jit_") else [])]


RUN = [
    *BACKBONE,
    "model=pmf_tiny",
    "batch=16",
    "images=480",
    "log_every_steps=1",
    "sample_grid.every_images=160",
    "checkpoint.every_images=80",
    "metrics=none",
]
