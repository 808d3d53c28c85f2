"""Forward-mode derivatives that reuse the values of the training pass.

torch.func.jvp also multiplies with the zero tangents of every weight, computes all values a second time, and retains
the graph of the derivative when the values need one. Here the values are computed once, with their graph, while a tape
records the operations that depend on the direction. Then the tangents of the requested output are computed along the
tape, without a graph. Measurements are in docs/speed.md.

A function may use the operations that have a rule in ``forward_rules.py``; any other raises NotImplementedError.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.profiler import record_function

from pmf_lightning.objectives.jvp.forward_rules import CONSTANT, RULES


class Dual(Tensor):
    """A tensor with a tangent in forward mode, and the tape that records its operations."""

    value: Tensor
    tangent: Tensor | None
    tape: list

    @staticmethod
    def __new__(cls, value: Tensor, tape: list, tangent: Tensor | None = None):
        """Wrap ``value``; shape, dtype and device work as for any tensor."""
        dual = value.detach().as_subclass(cls)
        dual.value, dual.tape, dual.tangent = value, tape, tangent
        return dual

    def __repr__(self) -> str:
        return f"Dual({self.value!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # shape, dtype, device: the wrapper has them
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name in CONSTANT:
            return func(*_map(_value, args), **_map(_value, kwargs))
        if name not in RULES:
            raise NotImplementedError(f"no forward-mode rule for {name}; use the form two_pass")
        tape = next(arg.tape for arg in _flat(args) if isinstance(arg, Dual))
        value = func(*_map(_value, args), **_map(_value, kwargs))
        many = isinstance(value, tuple)
        outputs = tuple(Dual(part, tape) for part in value) if many else (Dual(value, tape),)
        noted = outputs, RULES[name], func, args, kwargs
        if torch.compiler.is_compiling():  # the compiler removes unused tangents
            _advance(*noted)
        else:
            tape.append(noted)
        return outputs if many else outputs[0]


def derivative(function: Callable[..., tuple[Tensor, ...]], primals: tuple, tangents: tuple) -> tuple[tuple, Tensor]:
    """Return the outputs of ``function(*primals)`` and the derivative of the first one along ``tangents``.

    The outputs carry their ordinary autograd graph; the derivative carries none. A tangent None marks a constant.
    """
    tape: list = []
    inputs = [p if d is None else Dual(p, tape, d) for p, d in zip(primals, tangents, strict=True)]
    outputs = function(*inputs)
    # The compiler cannot trace a label of the profiler, and warns of it.
    label = nullcontext() if torch.compiler.is_compiling() else record_function("derivative")
    with torch.no_grad(), label:
        slope = _tangent(outputs[0], tape)
    values = tuple(_value(output) for output in outputs)
    tape.clear()  # breaks the reference cycle of tape and duals, which would otherwise wait for the garbage collector
    return values, slope


class Region:
    """Several operations that compute their value and its tangent together, such as a compiled block.

    Args:
        values: function of the arguments (a tuple), with its ordinary autograd graph.
        both: function of the arguments and their tangents (None: constant), which returns values and tangents.

    ``needed`` is whether the last derivative used the tangent. If not, the next one computes the values alone; should
    it need the tangent after all, the values are computed twice.
    """

    def __init__(self, values: Callable[[tuple], Tensor], both: Callable[[tuple, tuple], tuple[Tensor, Tensor]]):
        self.values, self.both, self.needed = values, both, True


def through(region: Region, args: tuple) -> Dual:
    """Return the value of ``region`` for arguments with Duals among them."""
    tape = next(arg.tape for arg in args if isinstance(arg, Dual))
    if region.needed:
        for arg in args:
            if isinstance(arg, Dual):
                _tangent(arg, tape)
        value, tangent = region.both(_map(_value, args), _map(_slope, args))
    else:
        value, tangent = region.values(_map(_value, args)), None
    dual = Dual(value, tape, tangent)
    tape.append(((dual,), _again, region, args, {}))
    return dual


def _again(region, out, values, slopes, kwargs):
    return region.both(values, slopes)[1]


def _tangent(target: Tensor, tape: list) -> Tensor:
    """Return the tangent of ``target`` by running the tape over the operations that it depends on."""
    if not isinstance(target, Dual):
        return torch.zeros_like(target)
    if torch.compiler.is_compiling():
        return target.tangent
    needed = {id(target)}
    for outputs, _, _, args, _ in reversed(tape):
        if any(id(output) in needed for output in outputs):
            needed.update(id(arg) for arg in _flat(args) if isinstance(arg, Dual))
    for noted in tape:
        outputs, _, func, *_ = noted
        used = any(id(output) in needed for output in outputs)
        if isinstance(func, Region):
            func.needed = used
        if used and outputs[0].tangent is None:
            _advance(*noted)
    return target.tangent


def _advance(outputs, rule, func, args, kwargs) -> None:
    """Compute the tangents of the outputs of one operation."""
    with torch.no_grad():
        values, slopes = _map(_detached, args), _map(_slope, args)
        results = rule(func, outputs[0].value.detach(), values, slopes, _map(_detached, kwargs))
        for output, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
            output.tangent = result


def _flat(args):
    for arg in args:
        if isinstance(arg, list | tuple):
            yield from _flat(arg)
        else:
            yield arg


def _map(change, args):
    if isinstance(args, dict):
        return {name: _map(change, arg) for name, arg in args.items()}
    if type(args) in (list, tuple):
        return type(args)(_map(change, arg) for arg in args)
    return change(args)


def _value(arg):
    return arg.value if isinstance(arg, Dual) else arg


def _detached(arg):
    arg = _value(arg)
    return arg.detach() if isinstance(arg, Tensor) else arg


def _slope(arg):
    return arg.tangent if isinstance(arg, Dual) else None
