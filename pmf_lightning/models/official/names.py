"""How official weight names and shapes follow from ours: what a family's files are like."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn


def _nothing(network: nn.Module) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Family:
    """The official files of one family of models. Official names are without the prefix ``net.``.

    Args:
        name: as the paper writes it.
        rules: pairs (pattern of our name, official name), tried in order on the whole name.
        mark: the official name by which the family is recognised.
        patches: the official name of the first patch convolution.
        norm: the official name of a vector as long as the width.
        table: the official name of the class table.
        stacks: a pattern for each stack of blocks on the way to u, of one weight of every block, its number in group 1.
        flat_tokens: learned tokens are [n, width]; ours are [1, n, width].
        recomputed: official buffers that hold no learned value and are not looked at.
        fixed: what the files of a network hold that is not learned, by official name; the file's must be the same.
        keeps_v_layer: files without v-heads still hold the final layer behind them.
        head_v: files of training hold a head v, which those for sampling lack.
        models: (width, blocks on the way to u, patch) of each size of the papers, and of its presets at other patches.
    """

    name: str
    rules: tuple[tuple[str, str], ...]
    mark: str
    patches: str
    norm: str
    table: str
    stacks: tuple[str, ...]
    flat_tokens: bool
    recomputed: frozenset[str]
    keeps_v_layer: bool
    head_v: bool
    models: Mapping[str, tuple[int, int, int]]
    fixed: Callable[[nn.Module], dict[str, Tensor]] = _nothing

    def official_name(self, name: str) -> str:
        """Return the name that official files give to our weight ``name``, without the prefix ``net.``."""
        for ours, theirs in self.rules:
            name = re.sub(ours, theirs, name)
        return name

    def to_official(self, name: str, value: Tensor) -> Tensor:
        """Return our weight ``name``, or its gradient, in the official shape."""
        return value.squeeze(0) if self.flat_tokens and _is_tokens(name) else value

    def from_official(self, name: str, value: Tensor) -> Tensor:
        """Return the official value of our weight ``name`` in our shape."""
        return value.unsqueeze(0) if self.flat_tokens and _is_tokens(name) else value


def preset(model: str) -> str:
    """Return the ``model=`` of a model by its name in the papers: pmf_b16 for pMF-B/16."""
    return model.lower().replace("-", "_").replace("/", "")


def _is_tokens(name: str) -> bool:
    return name.endswith(".tokens.weight")
