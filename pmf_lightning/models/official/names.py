"""How official weight names and shapes follow from ours: what the files of a family share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Ours -> theirs, tried in order on the whole name, after the rules of the family.
_SHARED = (
    (r"conditions\.label\.tokens\.weight", "class_tokens"),
    (r"conditions\.label\.table\.", "y_embedder.embedding_table._flax_embedding."),
    (r"conditions\.h\.tokens\.weight", "time_tokens"),
    (r"conditions\.(\w+)\.tokens\.weight", r"\1_tokens"),
    (r"conditions\.t_min\.", "cfg_t_start_embedder."),
    (r"conditions\.t_max\.", "cfg_t_end_embedder."),
    (r"conditions\.(\w+)\.", r"\1_embedder."),
    (r"mlp_in\.", "mlp.0._flax_linear."),
    (r"mlp_out\.", "mlp.2._flax_linear."),
    (r"heads\.(\w)\.blocks\.", r"\1_heads."),
    (r"heads\.(\w)\.norm\.", r"\1_final_layer.norm."),
    (r"heads\.(\w)\.out\.", r"\1_final_layer.linear._flax_linear."),
    (r"trunk\.", "shared_blocks."),
    (r"attention_norm\.", "norm1."),
    (r"mlp_norm\.", "norm2."),
    (r"attention_gate\.weight", "attn_scale"),
    (r"mlp_gate\.weight", "mlp_scale"),
    (r"attention\.(q|k)_norm\.", r"attn.\1_norm."),
    (r"attention\.(q|k|v|out)\.", r"attn.\1_proj._flax_linear."),
    (r"\.mlp\.(w\d)\.", r".mlp.\1._flax_linear."),
)


@dataclass(frozen=True)
class Family:
    """The official files of one family of models.

    Args:
        name: as the paper writes it.
        rules: pairs (pattern of our name, official name) of what the families do not share.
        mark: the official name of the patch convolution, by which the family is recognised.
        flat_tokens: learned tokens are [n, width]; ours are [1, n, width].
        recomputed: official buffers that hold no learned value.
        keeps_v_layer: files without v-heads still hold the final layer behind them.
        models: (width, blocks on the way to u, patch) of each size of the papers, and of its presets at other patches.
    """

    name: str
    rules: tuple[tuple[str, str], ...]
    mark: str
    flat_tokens: bool
    recomputed: frozenset[str]
    keeps_v_layer: bool
    models: Mapping[str, tuple[int, int, int]]

    def official_name(self, name: str) -> str:
        """Return the name that official files give to our weight ``name``, without the prefix ``net.``."""
        for ours, theirs in (*self.rules, *_SHARED):
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
