"""Make training shards from images: python -m pmf_lightning.shard in=/data/imagenet/train out=/data/shards size=256

Pillow decodes each file. The image is rotated by its EXIF orientation and converted to RGB: transparent pixels become
``background``, CMYK uses Pillow's plain conversion, 16 bits are reduced to the high byte, and colour profiles are not
applied. It is then resized and cropped to the central square as in ADM. Every file that is not used is listed in
unreadable.tsv with the reason.
"""

import sys
from typing import Any

from omegaconf import DictConfig

from pmf_lightning.cli import command, with_one_line_errors
from pmf_lightning.utils.errors import UserError


def shard(cfg: DictConfig) -> Any:
    """Make the shards that ``cfg`` (conf/commands/shard.yaml) describes; finished ones are reused.

    Returns a ShardingResult (data/shards/writing/make.py). Raises UserError for bad input, before any image is read,
    and if too many inputs are unreadable.
    """
    from pmf_lightning.commands import shard as work  # imports PyTorch, which --help and refusals do without

    return work.run(cfg)


@command("shard")
def _main(cfg: DictConfig) -> None:
    from pmf_lightning.commands import shard as work

    work.run_and_show(cfg)


def _refuse_several_inputs() -> None:
    """Raise UserError if the shell has expanded ``in`` into several arguments."""
    if sum(argument.startswith("in=") for argument in sys.argv[1:]) > 1:
        raise UserError("in is given more than once: put quotes around a pattern with braces or stars, in='...'")


def main() -> None:
    """Make or verify the shards that the command line describes and print the result."""
    with_one_line_errors(_refuse_several_inputs)
    _main()


if __name__ == "__main__":
    main()
