"""Sample from a checkpoint: python -m pmf_lightning.sample ckpt=runs/... classes=[3,7] n=64 omega=2 out=samples"""

from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command
from pmf_lightning.utils.counted import counted


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Sample the images that ``cfg`` (conf/commands/sample.yaml) requests; return "grid", "images" (paths) and "nfe".

    With ``nearest_images`` also "nearest" (a path), "close" (a fraction, evaluation/nearest.py) and "compared" (the
    number of training images). Image i has label ``classes[i % len(classes)]`` and otherwise depends only on (seed, i).
    Raises UserError for bad input.
    """
    from pmf_lightning.commands import sample as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("sample", models=("ckpt",))
def main(cfg: DictConfig) -> None:
    """Sample what the command line requests and print the paths."""
    paths = sample(cfg)
    print(f"{counted(cfg.n, 'image')}: {paths['images']} (uint8 NHWC arr_0, labels arr_1) and {paths['grid']}")
    if "nearest" in paths:
        among, close = f"{counted(paths['compared'], 'training image')}", f"{100 * paths['close']:.0f} %"
        print(f"{paths['nearest']}: each image above the nearest of {among}, in the features of a classifier")
        print(f"  {close} are so near to it that they may be copies; of held-out real images 5 % are so near")
    print(f"{counted(paths['nfe'], 'network evaluation')} per image")


if __name__ == "__main__":
    main()
