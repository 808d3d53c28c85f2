"""Evaluate a checkpoint or images: python -m pmf_lightning.evaluate ckpt=runs/... protocol=jit reference=stats.npz"""

from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate the images that ``cfg`` (conf/commands/evaluate.yaml) names; return evaluation.json on all ranks.

    Raises UserError for bad input, before long work.
    """
    from pmf_lightning.commands import evaluate as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("evaluate", models=("ckpt",))
def main(cfg: DictConfig) -> None:
    """Evaluate what the command line names and print the scores."""
    from pmf_lightning.commands import evaluate as work

    work.run_and_show(cfg)


if __name__ == "__main__":
    main()
