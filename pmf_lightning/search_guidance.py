"""Search for the best sampling settings: python -m pmf_lightning.search_guidance ckpt=runs/... reference=stats.npz

The search evaluates averages x guidance scales x intervals x steps (x methods) with few images each, from the same
noise. It then evaluates the best setting with many images, with and without guidance.
"""

from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command


def search(cfg: DictConfig) -> dict[str, Any]:
    """Run the search that ``cfg`` (conf/commands/search_guidance.yaml) describes.

    Returns records ("best" and "tried" with n images; "final" and "unguided" with n_final), paths ("results", "maps",
    "lines", "samples", "best_json"), and "edges" and "names", which the command prints. All ranks call it and return
    the same; rank 0 writes. Raises UserError for bad input, before long work.
    """
    from pmf_lightning.commands import search_guidance as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("search_guidance", models=("ckpt",))
def main(cfg: DictConfig) -> None:
    """Run the search that the command line describes and print the result."""
    from pmf_lightning.commands import search_guidance as work

    work.run_and_show(cfg)


if __name__ == "__main__":
    main()
