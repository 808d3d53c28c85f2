"""Joining tensors that may carry tangents (objectives/forward_mode.py) so that torch.compile notices these.

torch.compile looks for subclasses of Tensor among the arguments of a function, not inside a list that is one: there it
takes torch.cat for a constant, and the derivative comes out wrong without a word (torch 2.15). Here the subclass is
asked by name.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def join(how: Callable[..., Tensor], parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return ``how(parts, dim)`` for ``how`` torch.cat or torch.stack."""
    if torch.compiler.is_compiling():
        for part in parts:
            if type(part) is not Tensor and type(part) is not nn.Parameter:
                return type(part).__torch_function__(how, (type(part),), (parts, dim))
    return how(parts, dim)
