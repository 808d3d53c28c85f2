"""Show a model and its costs next to its paper's numbers: python -m pmf_lightning.info model=pmf_b16"""

import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command


def info(overrides: Sequence[str] = ()) -> list[Any]:
    """Return the Facts of the model that ``overrides`` describe, or of every preset with "every_model=true".

    Without an override of data or experiment, a preset uses its default data. Facts are those of
    profiling/model_facts.py. Raises UserError.
    """
    from pmf_lightning.commands import info as work  # imports PyTorch, which --help and refusals do without

    return work.info(overrides)


@command("info")
def _main(cfg: DictConfig) -> None:
    from pmf_lightning.commands import info as work

    work.run_and_show(cfg)


def main() -> None:
    """Print the requested facts; model=all means every preset (there is no such file)."""
    sys.argv[1:] = ["every_model=true" if argument == "model=all" else argument for argument in sys.argv[1:]]
    _main()


if __name__ == "__main__":
    main()
