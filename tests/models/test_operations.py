"""RMSNorm, softmax and RoPE as single operations: values, derivatives of all kinds, and half precision."""

import pytest
import torch
import torch.nn.functional as F
from common import normal

from pmf_lightning.models.operations import rms_norm, rotate_pairs, softmax
from pmf_lightning.utils.threads import fixed

ANGLES = normal("angles", shape=(5, 3))
SHAPE = (2, 4, 5, 6)  # batch, heads, tokens, channels


def by_formula(x):
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = ANGLES.cos().to(x.dtype), ANGLES.sin().to(x.dtype)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def heads_of(name):
    """Return q or k as attention has it: heads in front of tokens, so it is not contiguous."""
    return normal(name, shape=(2, 5, 4, 6)).transpose(1, 2)


def test_rotation_is_that_of_the_formula():
    x, grad = heads_of("x").requires_grad_(), normal("grad", shape=SHAPE)
    got, expected = rotate_pairs(x, ANGLES.cos(), ANGLES.sin()), by_formula(x)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    pairs = zip(torch.autograd.grad(got, x, grad), torch.autograd.grad(expected, x, grad), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rotated_in_float32(dtype):
    x = heads_of("x").to(dtype)
    got = rotate_pairs(x, ANGLES.cos(), ANGLES.sin())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), by_formula(x.double()), rtol=1e-6, atol=1e-6)


def test_norm_is_torchs():
    x, weight, grad = heads_of("x").requires_grad_(), normal("w", shape=(6,)).requires_grad_(), normal("g", shape=SHAPE)
    got, expected = rms_norm(x, (6,), weight, 1e-6), F.rms_norm(x, (6,), weight, 1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    ours, theirs = (torch.autograd.grad(y, (x, weight), grad) for y in (got, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_derivatives_are_those_of_differences():
    x, weight = (normal(name, shape=shape).requires_grad_() for name, shape in (("x", (2, 3, 6)), ("w", (6,))))
    norm = lambda x, weight: rms_norm(x, (6,), weight, 1e-2)  # noqa: E731
    rotate = lambda x: rotate_pairs(x, ANGLES[:3].cos(), ANGLES[:3].sin())  # noqa: E731
    assert torch.autograd.gradcheck(norm, (x, weight), check_forward_ad=True)
    assert torch.autograd.gradcheck(rotate, (x,), check_forward_ad=True)
    for axis in (1, -1):
        assert torch.autograd.gradcheck(lambda x: softmax(x, axis), (x,), check_forward_ad=True)  # noqa: B023


def test_tangents_are_torchs():
    x, dx, weight = heads_of("x"), heads_of("dx"), normal("w", shape=(6,))
    _, got = torch.func.jvp(lambda x: rms_norm(x, (6,), weight, 1e-6), (x,), (dx,))
    _, expected = torch.func.jvp(lambda x: F.rms_norm(x, (6,), weight, 1e-6), (x,), (dx,))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_a_second_backward_pass_is_refused():
    x = heads_of("x").requires_grad_()
    squares = rms_norm(x, (6,), torch.ones(6).double(), 1e-6).square().sum()
    (first,) = torch.autograd.grad(squares, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_softmax_is_torchs_and_its_gradient_the_same_for_all_numbers_of_threads():
    scores = normal("scores", shape=(64, 4, 23, 23), dtype=torch.float32).requires_grad_()  # of pmf_digits
    grad = normal("grad", shape=scores.shape, dtype=torch.float32)
    assert torch.equal(softmax(scores, -1), scores.softmax(-1))
    gradients = []
    for threads in (1, 2):
        with fixed(threads):
            gradients += torch.autograd.grad(softmax(scores, -1), scores, grad)
    assert torch.equal(*gradients)
    torch.testing.assert_close(gradients[0], torch.autograd.grad(scores.softmax(-1), scores, grad)[0])
