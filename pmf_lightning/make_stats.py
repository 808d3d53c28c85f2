"""Make reference statistics of images: python -m pmf_lightning.make_stats data=folder data.root=... out=stats.npz"""

from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command


def make_stats(cfg: DictConfig) -> dict[str, Any]:
    """Compute the statistics of the images that ``cfg`` (conf/commands/make_stats.yaml) names, and write files.

    Returns their "paths", "about" and the number of "features". With ``battery=`` a folder is written
    (evaluation/battery). Raises UserError for bad input, before long work.
    """
    from pmf_lightning.commands import make_stats as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("make_stats")
def main(cfg: DictConfig) -> None:
    """Compute the statistics that the command line names and print their paths."""
    from pmf_lightning.commands import make_stats as work

    work.run_and_show(cfg)


if __name__ == "__main__":
    main()
