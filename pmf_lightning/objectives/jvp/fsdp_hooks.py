"""Let FSDP hooks see the plain tensors inside Duals (forward_mode.py).

FSDP gathers weights before a module runs and reduces gradients after its backward pass. Its hooks look for tensors with
a graph among the inputs and outputs. A Dual stores its graph inside, so the hooks would miss it. Here each Dual is
unwrapped before the module's hooks and wrapped again after them.
"""

from typing import Any

from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pmf_lightning.objectives.jvp.forward_mode import Dual


def open_duals(module: nn.Module) -> None:
    """Pass the values of Duals to the hooks already registered on ``module``, and the Duals to the module itself."""
    waiting: list[list[Any]] = []  # unwrapped inputs or outputs, for the hook that wraps them again

    def before(_, args, kwargs):
        return _open(waiting, (args, kwargs))

    def before_forward(_, args, kwargs):
        return _close(waiting, (args, kwargs))

    def after_forward(_, args, output):
        return _open(waiting, output)

    def after(_, args, output):
        return _close(waiting, output)

    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    module.register_forward_pre_hook(before_forward, with_kwargs=True)
    module.register_forward_hook(after_forward, prepend=True)
    module.register_forward_hook(after)


def _open(waiting: list, tree: Any) -> Any:
    leaves, shape = tree_flatten(tree)
    waiting.append(leaves)
    return tree_unflatten([leaf.value if isinstance(leaf, Dual) else leaf for leaf in leaves], shape)


def _close(waiting: list, tree: Any) -> Any:
    leaves, shape = tree_flatten(tree)
    pairs = zip(waiting.pop(), leaves, strict=True)
    return tree_unflatten([_again(was, now) if isinstance(was, Dual) else now for was, now in pairs], shape)


def _again(dual: Dual, value: Any) -> Dual:
    """Return a Dual of a hook's output for the value of ``dual``: the same numbers, possibly in another dtype."""
    if value is dual.value:
        return dual
    new = Dual(value, dual.tape)
    dual.tape.append(((new,), _same, None, (dual,), {}))
    return new


def _same(func, out, values, slopes, kwargs):
    return slopes[0].to(out.dtype)
