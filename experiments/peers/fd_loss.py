"""Race our step against FD-loss's pMFDenoiser, a public training step of pMF in PyTorch.

usage: python experiments/peers/fd_loss.py FOLDER [override ...]

FOLDER is a clone of github.com/Jiawei-Yang/FD-loss. Overrides are those of the command benchmark, for example
what=step images_at_once=4 repeats=5 out=fd_loss.json, or what=sampling. Their attention is explicit and their step has
no other form; both sides run without perceptual losses.
"""

from functools import partial
from typing import Any

from turns import Peer, Side, images, main

ADDRESS = "https://github.com/Jiawei-Yang/FD-loss"
DEFAULTS = ["what=step", "model=pmf_b16", "data=imagenet256", "perceptual=none"]


def theirs(peer: Peer, cfg: Any) -> Side:
    """Return their training forward and backward, or their one-step sampling without the v-head."""
    module, backbones = peer.module("models.denoiser_pmf"), peer.module("models.mit")
    import torch

    size, sampled = cfg.backbone, cfg.what == "sampling"
    backbones.MiT_models["given"] = partial(
        backbones.MiT, depth=size.depth + size.heads.u, hidden_size=size.width, num_heads=size.num_heads
    )
    model = module.pMFDenoiser(
        backbone="given",
        img_size=cfg.data.resolution,
        patch_size=size.patch,
        bottleneck_dim=size.bottleneck,
        num_classes=cfg.data.classes,
        aux_head_depth=size.heads.u,
        P_mean=cfg.objective.P_mean,
        P_std=cfg.objective.P_std,
        noise_scale=cfg.objective.noise_scale,
        rope_2d=True,
        learned_pe=True,
        disable_v_head=sampled,
    )
    shape = (images(cfg), 3, cfg.data.resolution, cfg.data.resolution)
    x, y = torch.rand(shape) * 2 - 1, torch.arange(shape[0]) % cfg.data.classes

    def step() -> None:
        model.zero_grad()
        model(x, y)[0].backward()

    def sample() -> None:
        options = {"t_min": cfg.sampling.t_min, "t_max": cfg.sampling.t_max, "cfg": cfg.sampling.omega}
        with torch.inference_mode():
            model.sample_images_with_grad(x, y, options | {"num_steps": cfg.sampling.steps})

    return Side(sample if sampled else step, sum(w.numel() for w in model.parameters() if w.requires_grad))


if __name__ == "__main__":
    main(__doc__, ADDRESS, DEFAULTS, theirs)
