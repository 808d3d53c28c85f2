"""Layers of the shared backbone. Each module with weights defines their initialisation and their optimiser.

``init_weights(stream)`` fills the weights from ``stream(name)``, a generator per weight, so that no weight depends on
the presence of another. ``optim_kinds`` names the optimiser of each weight: "muon" for matrices, "adam" for the rest.

torch.compile finds Tensor subclasses among the arguments of a function, but not inside a list argument. It then treats
torch.cat of such a list as a constant, and the derivative is silently wrong (torch 2.15). ``cat_with_tangents``
therefore calls the subclass's ``__torch_function__`` directly.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.operations import rms_norm, softmax
from pmf_lightning.utils.precision import Number, at_least_float32, no_autocast

AttentionKind = Literal["plain", "fused"]

Stream = Callable[[str], torch.Generator]

Tokens = Float[Tensor, "b n d"]


Init = Callable[..., Tensor]  # fills a weight: init(weight, generator=...)


def normal(std: Number) -> Init:
    """Return an initialisation from N(0, std^2)."""
    return partial(nn.init.normal_, std=std)


def fan_in_normal(gain: Number) -> Init:
    """Return an initialisation from N(0, gain^2 / fan_in); gain 0 gives zeros."""
    return partial(_fan_in_normal_, gain=gain)


def _fan_in_normal_(weight: Tensor, generator: torch.Generator, gain: Number) -> Tensor:
    return nn.init.normal_(weight, std=gain / math.sqrt(weight[0].numel()), generator=generator)


def xavier_(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Initialise xavier-uniform; a kernel counts as the matrix [fan_in p p, fan_out].

    torch's xavier_uniform_ would include p*p in the fan-out too and give weights 6 times smaller.
    """
    bound = math.sqrt(6.0 / (len(weight) + weight[0].numel()))
    return nn.init.uniform_(weight, -bound, bound, generator=generator)


class _Initialised(nn.Module):
    """Base class of layers with a weight, initialised by ``init``, and an optional bias, initialised with zeros."""

    init: Init

    def reset_parameters(self) -> None:
        """Do nothing, since torch's initialisation would use the global random generator."""

    def init_weights(self, stream: Stream) -> None:
        """Initialise weight and bias."""
        self.init(self.weight, generator=stream("weight"))
        if getattr(self, "bias", None) is not None:
            nn.init.zeros_(self.bias)


class Linear(_Initialised, nn.Linear):
    """Linear layer with an initialisation. ``kind`` is the optimiser of the matrix."""

    def __init__(
        self, fan_in: int, fan_out: int, init: Init, bias: bool = True, kind: Literal["muon", "adam"] = "muon"
    ):
        super().__init__(fan_in, fan_out, bias)
        self.init, self.optim_kinds = init, {"weight": kind, "bias": "adam"}


class Conv(_Initialised, nn.Conv2d):
    """Convolution with an initialisation; it is optimised by Adam. ``options`` are those of nn.Conv2d."""

    optim_kinds = {"weight": "adam", "bias": "adam"}

    def __init__(self, fan_in: int, fan_out: int, kernel: int, init: Init, **options: Any):
        super().__init__(fan_in, fan_out, kernel, **options)
        self.init = init


class EmbeddingTable(_Initialised, nn.Embedding):
    """Embedding table with one row per class, initialised from N(0, std^2).

    It is optimised by Adam although it is a matrix, because the official code stores it as [1, rows, width], and
    optax's Muon takes matrices only.
    """

    optim_kinds = {"weight": "adam"}

    def __init__(self, rows: int, width: int, std: Number):
        super().__init__(rows, width)
        self.init = normal(std)


class RMSNorm(nn.Module):
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in float32 or wider."""

    optim_kinds = {"weight": "adam"}

    def __init__(self, width: int, eps: Number = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def init_weights(self, stream: Stream) -> None:
        """Initialise with ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; shape and dtype are unchanged."""
        wide = at_least_float32(x)
        return rms_norm(wide, self.weight.shape, at_least_float32(self.weight), self.eps).to(x.dtype)


class LayerScale(nn.Module):
    """LayerScale: a learned factor per channel of a residual branch; zero-initialised, so the block is the identity."""

    optim_kinds = {"weight": "adam"}

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def init_weights(self, stream: Stream) -> None:
        """Initialise with zeros."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tokens) -> Tokens:
        """Scale the channels."""
        return x * self.weight


class SwiGLU(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, init: Init, bias: bool = False):
        super().__init__()
        self.w1 = Linear(width, hidden, init, bias)
        self.w3 = Linear(width, hidden, init, bias)
        self.w2 = Linear(hidden, width, init, bias)

    def forward(self, x: Tokens) -> Tokens:
        """Map tokens to tokens."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def attend(q: Tensor, k: Tensor, v: Tensor, kind: AttentionKind) -> Tensor:
    """Compute softmax attention over [b, heads, n, head_dim].

    "plain" uses matrix products, those of q and k in float32: no fused kernel of torch has a forward-mode derivative
    (pytorch issue 165530), and in half precision eps- and v-prediction are unstable with one (JiT, issue 15).
    """
    if kind == "fused":
        return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
    return softmax(attention_scores(q, k), -1).to(v.dtype) @ v


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """Return q k^T / sqrt(head_dim) in float32 or wider, under autocast too, as official JiT and Drifting do.

    On a GPU ``matmul_precision`` decides whether float32 is TF32.
    """
    with no_autocast(q):
        return at_least_float32(q) @ at_least_float32(k).transpose(-1, -2) * q.shape[-1] ** -0.5


class Attention(nn.Module):
    """Self-attention with separate q, k, v (Muon orthogonalises each separately), RMS-normalised q and k, and RoPE."""

    def __init__(self, width: int, heads: int, init: Init):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (Linear(width, width, init, bias=False) for _ in range(4))
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    def forward(self, x: Tokens, rotate: Callable[[Tensor], Tensor], kind: AttentionKind) -> Tokens:
        """Apply attention; ``rotate`` applies RoPE to q and k."""
        split = *x.shape[:-1], self.heads, -1
        q, k, v = (layer(x).view(split).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = attend(rotate(self.q_norm(q)), rotate(self.k_norm(k)), v, kind)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block: x += gate(attention(norm x)); x += gate(swiglu(norm x))."""

    is_block: ClassVar = True  # for blocks_of

    def __init__(self, width: int, heads: int, hidden: int, init: Init):
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads, init)
        self.attention_gate = LayerScale(width)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden, init)
        self.mlp_gate = LayerScale(width)

    def forward(self, x: Tokens, rotate: Callable[[Tensor], Tensor], kind: AttentionKind) -> Tokens:
        """Transform the tokens."""
        x = x + self.attention_gate(self.attention(self.attention_norm(x), rotate, kind))
        return x + self.mlp_gate(self.mlp(self.mlp_norm(x)))


def cat_with_tangents(how: Callable[..., Tensor], parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return ``how(parts, dim)`` for ``how`` torch.cat or torch.stack, keeping tangents under torch.compile."""
    if torch.compiler.is_compiling():
        for part in parts:
            if type(part) is not Tensor and type(part) is not nn.Parameter:
                return type(part).__torch_function__(how, (type(part),), (parts, dim))
    return how(parts, dim)
