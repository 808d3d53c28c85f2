"""Run operations on the meta device fast: a result is made from the layout of the same operation's former result.

All blocks of a network run the same operations, and PyTorch computes the shapes of many of them in Python.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operation with its arguments and the layouts of its tensors -> recipe of its result: shape, strides and dtype of a new
# tensor, the place of the returned tensor among the arguments, or a list of recipes.
_recipes: dict[tuple, Any] = {}
_NOTHING, _COMPUTED = object(), object()  # further recipes: None is returned; the result is always computed


class MetaResults(TorchDispatchMode):
    """Context in which an operation on the meta device is computed once; its next results are made, not computed.

    Views, operations on real tensors and those that change the layout of an argument are always computed.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given: list[Tensor] = []
        key = (func, torch.get_default_dtype(), *_arguments((*args, *kwargs.items()), given))
        recipe = _recipes.get(key, _COMPUTED)
        if recipe is not _COMPUTED:
            return self._made(recipe, given)
        result = func(*args, **kwargs)
        old = {tensor.untyped_storage()._cdata for tensor in given}
        new = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in old]
        for tensor in new:
            self.created(tensor)
        if key not in _recipes:
            changed = key[2:] != (*_arguments((*args, *kwargs.items()), []),)
            real = changed or not all(tensor.is_meta for tensor in given)
            _recipes[key] = _COMPUTED if real else _recipe(result, given, old)
        return result

    def created(self, tensor: Tensor) -> None:
        """Called with each new tensor; one that shares memory with an argument is none."""

    def _made(self, recipe: Any, given: list[Tensor]) -> Any:
        if isinstance(recipe, int):
            return given[recipe]
        if isinstance(recipe, list):
            return [self._made(part, given) for part in recipe]
        if recipe is _NOTHING:
            return None
        shape, stride, dtype = recipe
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        self.created(tensor)
        return tensor


def _arguments(values: Iterable[Any], tensors: list[Tensor]) -> list:
    """Return the layouts of tensors, and other values with their types; append the tensors to ``tensors``."""
    found: list = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            layout = (value.shape, value.stride(), value.dtype, value.is_meta, value._is_zerotensor())
            found.append(layout)
        elif isinstance(value, list | tuple):
            found += [len(value), *_arguments(value, tensors)]
        else:
            found += [type(value), value]
    return found


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [one for part in result for one in _tensors(part)] if isinstance(result, list | tuple) else []


def _recipe(result: Any, given: list[Tensor], old: set[int]) -> Any:
    """Return the recipe of a result; ``old`` are the storages of tensors that are not new."""
    if result is None:
        return _NOTHING
    if isinstance(result, list | tuple):
        parts = [_recipe(part, given, old) for part in result]
        return _COMPUTED if _COMPUTED in parts else parts
    if not isinstance(result, Tensor) or not result.is_meta or result._is_zerotensor():
        return _COMPUTED
    for place, tensor in enumerate(given):
        if tensor is result:
            return place
    if (storage := result.untyped_storage()._cdata) in old:
        return _COMPUTED
    old.add(storage)
    return result.shape, result.stride(), result.dtype
