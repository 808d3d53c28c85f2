"""Convert weights between formats: python -m pmf_lightning.convert in=pMF-B-16.pt out=pmf_b16

Sources are official files of pMF, iMF, JiT and Drifting, checkpoints of our training, and folders that this command
wrote. The target is a folder that ``sample`` accepts as ``ckpt``, or a file with official parameter names.
"""

from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command


def convert(cfg: DictConfig) -> Any:
    """Convert the weights that ``cfg`` (conf/commands/convert.yaml) names; return the StoredWeights that it wrote.

    Raises UserError for bad input, before anything is written.
    """
    from pmf_lightning.commands import convert as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("convert", models=("in",))
def main(cfg: DictConfig) -> None:
    """Convert the weights that the command line names and print a summary."""
    from pmf_lightning.commands import convert as work

    work.run_and_show(cfg)


if __name__ == "__main__":
    main()
