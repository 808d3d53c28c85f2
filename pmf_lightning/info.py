"""Show a model and its costs next to its paper's numbers: python -m pmf_lightning.info model=pmf_b16"""

import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command, with_one_line_errors
from pmf_lightning.config.presets import on_its_data


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
    arguments = ["every_model=true" if argument == "model=all" else argument for argument in sys.argv[1:]]
    sys.argv[1:] = with_one_line_errors(lambda: on_its_data(arguments))
    _main()


if __name__ == "__main__":
    main()
