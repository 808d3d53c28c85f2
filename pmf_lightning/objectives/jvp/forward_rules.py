"""Forward-mode rules: ``rule(func, out, values, slopes, kwargs)`` returns the tangent of one operation.

``values`` are the arguments of ``func`` without graph, ``out`` is its (first) result. ``slopes`` are the tangents of
the arguments at the same positions, None for constants.
"""

import torch


def _linear_in_first(func, out, values, slopes, kwargs):
    """Operations linear in their first argument, such as reshapes."""
    return func(slopes[0], *values[1:], **kwargs)


def _affine(func, out, values, slopes, kwargs):
    """A linear layer or convolution with constant weights; the bias does not contribute."""
    return func(slopes[0], values[1], None, *values[3:], **{k: v for k, v in kwargs.items() if k != "bias"})


def _joined(func, out, values, slopes, kwargs):
    """torch.cat and torch.stack; constants have zero tangents."""
    parts = [torch.zeros_like(v) if s is None else s for v, s in zip(values[0], slopes[0], strict=True)]
    return func(parts, *values[1:], **kwargs)


def _add(func, out, values, slopes, kwargs):
    return _summed(out, slopes[0], slopes[1])


def _subtract(func, out, values, slopes, kwargs):
    return _summed(out, slopes[0], None if slopes[1] is None else -slopes[1])


def _reversed_subtract(func, out, values, slopes, kwargs):
    return -slopes[0].expand(out.shape)


def _product(func, out, values, slopes, kwargs):
    """Product or matrix product."""
    (a, b), (da, db) = values, slopes
    return _summed(out, None if da is None else func(da, b), None if db is None else func(a, db))


def _quotient(func, out, values, slopes, kwargs):
    (_, b), (da, db) = values, slopes
    return _summed(out, None if da is None else da / b, None if db is None else -out * db / b)


def _summed(out, a, b):
    if a is None or b is None:
        return (b if a is None else a).expand(out.shape)
    return a + b


def _cos(func, out, values, slopes, kwargs):
    return -values[0].sin() * slopes[0]


def _sin(func, out, values, slopes, kwargs):
    return values[0].cos() * slopes[0]


def _exp(func, out, values, slopes, kwargs):
    return out * slopes[0]


def _sqrt(func, out, values, slopes, kwargs):
    return slopes[0] / (2 * out)


def _square(func, out, values, slopes, kwargs):
    return 2 * values[0] * slopes[0]


def _tanh(func, out, values, slopes, kwargs):
    return (1 - out.square()) * slopes[0]


def _sigmoid(func, out, values, slopes, kwargs):
    return out * (1 - out) * slopes[0]


def _clamp(func, out, values, slopes, kwargs):
    return torch.where(out == values[0], slopes[0], 0)


def _relu(func, out, values, slopes, kwargs):
    return torch.where(values[0] > 0, slopes[0], 0)


def _silu(func, out, values, slopes, kwargs):
    gate = values[0].sigmoid()
    return slopes[0] * (gate + out * (1 - gate))


def _softmax(func, out, values, slopes, kwargs):
    dim = values[1] if len(values) > 1 else kwargs["dim"]
    weighted = out * slopes[0]
    return weighted - out * weighted.sum(dim, keepdim=True)


def _rms_norm(func, out, values, slopes, kwargs):
    (x, shape, *rest), dx = values, slopes[0]
    weight, eps = rest if len(rest) == 2 else (kwargs["weight"], kwargs["eps"])
    dims = tuple(range(-len(shape), 0))
    scale = torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    slope = scale * dx - x * (scale.pow(3) * (x * dx).mean(dims, keepdim=True))
    return slope if weight is None else slope * weight


def _attention(func, out, values, slopes, kwargs):
    """Fused attention; the attention weights are recomputed, because the kernel does not return them."""
    (q, k, v), (dq, dk, dv) = values, slopes
    scale = q.shape[-1] ** -0.5
    weights = (q @ k.transpose(-1, -2) * scale).softmax(-1)
    scores = (dq @ k.transpose(-1, -2) + q @ dk.transpose(-1, -2)) * scale
    return _softmax(None, weights, (None, -1), (scores,), {}) @ v + weights @ dv


# Operations without a tangent: sizes, comparisons and detach.
CONSTANT = {"detach", "__len__", "size", "dim", "numel", "eq", "ne", "lt", "le", "gt", "ge", "zeros_like", "ones_like"}

RULES = {
    **dict.fromkeys(
        ["unflatten", "flatten", "transpose", "permute", "view", "reshape", "expand", "__getitem__", "unbind", "to"],
        _linear_in_first,
    ),
    **dict.fromkeys(["neg", "sum", "mean", "unsqueeze", "squeeze", "rotate_pairs"], _linear_in_first),
    **dict.fromkeys(["linear", "conv2d"], _affine),
    **dict.fromkeys(["cat", "stack"], _joined),
    **dict.fromkeys(["add", "__add__", "__radd__"], _add),
    **dict.fromkeys(["sub", "__sub__"], _subtract),
    **dict.fromkeys(["rsub", "__rsub__"], _reversed_subtract),
    **dict.fromkeys(["mul", "__mul__", "__rmul__", "matmul", "__matmul__"], _product),
    **dict.fromkeys(["div", "true_divide", "__truediv__"], _quotient),
    "cos": _cos,
    "sin": _sin,
    "exp": _exp,
    "sqrt": _sqrt,
    "square": _square,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "clamp": _clamp,
    "relu": _relu,
    "silu": _silu,
    "softmax": _softmax,
    "rms_norm": _rms_norm,
    "scaled_dot_product_attention": _attention,
}
