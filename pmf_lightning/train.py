"""Train a model: python -m pmf_lightning.train model=pmf_b16 data=imagenet256 trainer=gpu"""

from omegaconf import DictConfig

from pmf_lightning.cli import command
from pmf_lightning.sweeps.jobs import measured


def train(cfg: DictConfig) -> dict:
    """Run the training that ``cfg`` describes and return its summary, which is also written to ``summary.json``.

    Raises UserError for bad input before any long work starts.
    """
    # no decorator: launchers pickle this function
    from pmf_lightning.commands import train as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train what the command line describes; return the metric that sweeps optimise."""
    from pmf_lightning.commands import train as work

    elsewhere = work.run_in_subprocess(cfg)
    return measured(cfg, train(cfg) if elsewhere is None else elsewhere)


if __name__ == "__main__":
    main()
