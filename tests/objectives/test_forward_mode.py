"""Every rule of the tape against torch.func.jvp."""

import pytest
import torch
import torch.nn.functional as F
from common import normal

from pmf_lightning.models import operations
from pmf_lightning.objectives.jvp.forward_mode import derivative
from pmf_lightning.objectives.jvp.forward_rules import RULES

W, BIAS, SCALE = normal("w", shape=(5, 6)), normal("b", shape=(5,)), normal("s", shape=(6,))
KERNEL = normal("k", shape=(4, 3, 2, 2))
OTHER = normal("o", shape=(2, 4, 6))

# Functions of x [2, 4, 6] that between them use every rule, in every place where the varying argument may stand.
FUNCTIONS = {
    "linear": lambda x: F.linear(x, W, BIAS),
    "conv2d": lambda x: F.conv2d(x.unflatten(2, (3, 2)).permute(0, 2, 1, 3), KERNEL, normal("c", shape=(4,)), 2),
    "rms_norm": lambda x: F.rms_norm(x, (6,), SCALE, 1e-6),
    "rms_norm of models": lambda x: operations.rms_norm(x, (6,), SCALE, 1e-6),
    "rotation": lambda x: operations.rotate_pairs(x, OTHER[0, :, :3].cos(), OTHER[0, :, :3].sin()),
    "rms_norm without weight": lambda x: F.rms_norm(x, (6,), eps=1e-6),
    "softmax": lambda x: x.softmax(-1),
    "softmax of models": lambda x: operations.softmax(x, -1),
    "softmax by name": lambda x: torch.softmax(x, dim=1),
    "silu": F.silu,
    "relu": F.relu,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "cos sin": lambda x: x.cos() + torch.sin(x),
    "exp square": lambda x: x.exp() * torch.square(x),
    "square root": lambda x: (x.square() + 1).sqrt(),
    "tanh sigmoid": lambda x: torch.tanh(x) - x.sigmoid(),
    "products": lambda x: x * OTHER + OTHER * x + x * x + 3 * x + x * 3,
    "matrix products": lambda x: x @ x.transpose(1, 2) @ OTHER + torch.matmul(OTHER @ x.transpose(1, 2), OTHER),
    "quotients": lambda x: x / OTHER + OTHER / (x.square() + 1) + x / 2 + x.exp() / (x.square() + 2),
    "sums": lambda x: (x + 1) + (1 + x) + (x - OTHER) + (OTHER - x) + (1 - x) + (x + x) - (x - 2) + SCALE,
    "negation": lambda x: -x,
    "broadcast constant": lambda x: x[:, :1] + OTHER,
    "broadcast product": lambda x: x[:, :1] * OTHER,
    "shapes": lambda x: x.flatten(1).view(2, 6, 4).reshape(2, 4, 6)[:, None].squeeze(1).unsqueeze(0).expand(3, 2, 4, 6),
    "reductions": lambda x: x.sum(1, keepdim=True) * x.mean(2, keepdim=True),
    "cat stack": lambda x: torch.cat((x, OTHER), 1) + torch.stack((OTHER, x), 1).flatten(1, 2),
    "unbind": lambda x: x.unflatten(2, (3, 2)).unbind(-1)[1],
    "to": lambda x: x.to(torch.float64) * 2,
    "attention": lambda x: F.scaled_dot_product_attention(x, x.exp(), x * 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rule_equals_torch(name):
    x, direction = normal("x", name, shape=(2, 4, 6)), normal("d", name, shape=(2, 4, 6))

    def written_out(x):
        if name == "attention":  # torch's fused kernels have no forward-mode derivative
            return (x @ x.exp().transpose(-1, -2) * 6**-0.5).softmax(-1) @ (x * 2)
        return FUNCTIONS[name](x)

    value, slope = torch.func.jvp(written_out, (x,), (direction,))
    x.requires_grad_()
    (got,), got_slope = derivative(lambda x: (FUNCTIONS[name](x),), (x,), (direction,))
    torch.testing.assert_close(got, value)
    torch.testing.assert_close(got_slope, slope)
    assert got.requires_grad
    assert not got_slope.requires_grad


def test_every_rule_is_used():
    used = set()

    class Recording(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            used.add(func.__name__)
            return func(*args, **(kwargs or {}))

    with Recording():
        for function in FUNCTIONS.values():
            function(normal("x", shape=(2, 4, 6)))
    families = [{name for name in RULES if RULES[name] is rule} for rule in RULES.values()]
    assert all(family & used for family in families)


def test_unknown_operations_are_named():
    with pytest.raises(NotImplementedError, match="cumsum"):
        derivative(lambda x: (x.cumsum(0),), (OTHER,), (OTHER,))


def test_constants_have_no_tangent():
    (_, other), slope = derivative(lambda x, y: (y * 2, x * y), (OTHER, OTHER + 1), (OTHER, None))
    assert torch.equal(slope, torch.zeros_like(OTHER))
    torch.testing.assert_close(other, OTHER * (OTHER + 1))


def test_only_what_the_first_output_needs_is_derived(monkeypatch):
    calls = []
    rule = RULES["cos"]
    monkeypatch.setitem(RULES, "cos", lambda *args: calls.append(1) or rule(*args))
    derivative(lambda x: (x * 2, x.cos()), (OTHER,), (OTHER,))
    assert not calls
