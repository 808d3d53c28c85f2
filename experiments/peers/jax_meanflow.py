"""Race our step against the official JAX step of pMF or iMF under jit, in one process.

usage: python experiments/peers/jax_meanflow.py FOLDER [override ...]

FOLDER is a clone of github.com/Lyy-iiis/pMF (model=pmf_*, the default) or github.com/Lyy-iiis/imeanflow (model=imf_b2
data=imagenet256_latents, and others). pip install jax flax first. Overrides are those of the command benchmark, for
example images_at_once=4 repeats=5 out=jax.json, or what=sampling. The compilation of the first turn is not measured.
JAX takes all cores; with OMP_NUM_THREADS=1 both sides are bound to one.
"""

import itertools
import os
from functools import partial
from types import SimpleNamespace
from typing import Any

from turns import Peer, Side, images, main

from pmf_lightning.utils.errors import UserError

ADDRESS = "https://github.com/Lyy-iiis/pMF"
DEFAULTS = ["what=step", "model=pmf_b16", "data=imagenet256", "perceptual=none"]
CODES = {  # first letters of a preset -> modules of objective and backbone, their class, the class of the backbone
    "pmf": ("pmf", "models.pmfDiT", "pixelMeanFlow", "pmfDiT"),
    "imf": ("imf", "models.imfDiT", "iMeanFlow", "imfDiT"),
}


def theirs(peer: Peer, cfg: Any) -> Side:
    """Return their value_and_grad of the loss, or their one-step sampling, compiled by jax.jit."""
    import torch

    if torch.get_num_threads() == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # XLA takes all cores that it may use
    if cfg.name[:3] not in CODES:
        raise UserError(f"model={cfg.name}: these codes have pMF and iMF; choose a model of those")
    file, backbone_file, objective, backbone = CODES[cfg.name[:3]]
    backbones, code = peer.module(backbone_file), peer.module(file)
    import jax
    import jax.numpy as jnp

    size = cfg.backbone
    backbones.given = partial(
        getattr(backbones, backbone),
        input_size=cfg.data.resolution,
        patch_size=size.patch,
        depth=size.depth + size.heads.u,
        hidden_size=size.width,
        num_heads=size.num_heads,
        aux_head_depth=size.heads.u,
    )
    more = {"noise_scale": cfg.objective.noise_scale} if cfg.name[:3] == "pmf" else {}
    model = getattr(code, objective)(
        model_str="given",
        num_classes=cfg.data.classes,
        P_mean=cfg.objective.P_mean,
        P_std=cfg.objective.P_std,
        eval=cfg.what == "sampling",
        **more,
    )
    side, key = cfg.data.resolution, jax.random.PRNGKey(0)
    x = jax.random.uniform(key, (images(cfg), side, side, cfg.data.channels)) * 2 - 1
    y = jnp.arange(len(x)) % cfg.data.classes
    weights = jax.jit(model.init)({"params": key}, x[:1], jnp.ones((1,)), y[:1])["params"]

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def gradients(weights: Any, key: Any) -> Any:
        return model.apply({"params": weights}, images=x, labels=y, method=model.forward, rngs={"gen": key})

    shapes = {"num_classes": cfg.data.classes, "image_size": side, "image_channels": cfg.data.channels}
    config, sampling = SimpleNamespace(dataset=SimpleNamespace(**shapes)), cfg.sampling

    @jax.jit
    def sample(weights: Any, key: Any) -> Any:
        options = sampling.steps, sampling.omega, sampling.t_min, sampling.t_max
        return code.generate({"params": weights}, model, key, len(x), config, *options)

    function, calls = gradients if cfg.what == "step" else sample, itertools.count()

    def work() -> None:
        jax.block_until_ready(function(weights, jax.random.fold_in(key, next(calls))))

    return Side(work, sum(each.size for each in jax.tree.leaves(weights)), notes=f"jax {jax.__version__}")


if __name__ == "__main__":
    main(__doc__, ADDRESS, DEFAULTS, theirs)
