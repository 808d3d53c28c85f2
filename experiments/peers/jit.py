"""Race our JiT against the official Denoiser, in training or sampling.

usage: python experiments/peers/jit.py FOLDER [override ...]

FOLDER is a clone of github.com/LTH14/JiT. Overrides are those of the command benchmark, for example what=step
images_at_once=4 repeats=5 out=jit.json, or what=sampling sampling.steps=2. Their blocks are marked for torch.compile:
compile=true compiles both sides, compile=false (the default) neither. Their code calls .cuda() on some tensors; without
a GPU this script makes that call do nothing.
"""

from types import SimpleNamespace
from typing import Any

from turns import Peer, Side, images, main

ADDRESS = "https://github.com/LTH14/JiT"
DEFAULTS = ["what=step", "model=jit_b16", "data=imagenet256"]


def theirs(peer: Peer, cfg: Any) -> Side:
    """Return their training forward and backward, or their sampling, which draws its noise itself."""
    import torch

    torch._dynamo.config.disable = not cfg.compile
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    network, denoiser = peer.module("model_jit"), peer.module("denoiser")
    size, sampling, objective = cfg.backbone, cfg.sampling, cfg.objective

    def given(**more: Any) -> Any:
        return network.JiT(
            patch_size=size.patch,
            hidden_size=size.width,
            depth=size.depth,
            num_heads=size.num_heads,
            mlp_ratio=size.mlp_dim * 1.5 / size.width + 1e-9,  # they take two thirds of it, rounded down
            bottleneck_dim=size.bottleneck,
            in_context_len=size.context,
            in_context_start=size.context_start,
            **more,
        )

    network.JiT_models["given"] = given
    model = denoiser.Denoiser(
        SimpleNamespace(
            **{"model": "given", "img_size": cfg.data.resolution, "class_num": cfg.data.classes},
            **{"attn_dropout": size.attention_dropout, "proj_dropout": size.dropout, "noise_scale": 1.0},
            **{"label_drop_prob": objective.label_dropout, "P_mean": -objective.P_mean, "P_std": objective.P_std},
            **{"t_eps": objective.t_clip, "ema_decay1": 0.9999, "ema_decay2": 0.9996, "cfg": sampling.omega},
            **{"sampling_method": sampling.sampler or "heun", "num_sampling_steps": sampling.steps},
            **{"interval_min": 1 - sampling.t_max, "interval_max": 1 - sampling.t_min},  # their t=0 is noise
        )
    ).train(cfg.what == "step")
    shape = (images(cfg), 3, cfg.data.resolution, cfg.data.resolution)
    x, y = torch.rand(shape) * 2 - 1, torch.arange(shape[0]) % cfg.data.classes

    def step() -> None:
        model.zero_grad()
        model(x, y).backward()

    work = step if cfg.what == "step" else lambda: model.generate(y)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return Side(work, trained)


if __name__ == "__main__":
    main(__doc__, ADDRESS, DEFAULTS, theirs)
