"""What is made from a former result has its layout, and what cannot be made is computed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pmf_lightning.profiling.meta_results import MetaResults


def layouts(tensors):
    return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type) for tensor in tensors]


def some_operations():
    a, b = torch.empty(4, 6, device="meta"), torch.empty(6, 3, device="meta", dtype=torch.bfloat16)
    out = torch.empty(4, 3, device="meta")
    product = torch.mm(a, b.float(), out=out)
    both = torch._foreach_mul([a, a.T], 2.0)
    torch._foreach_add_(both, 1)
    values, places = a.T.max(0)
    return [product, *both, values, places, a.T + 1, b * 2, a.sum(0, keepdim=True), a.view(-1)[2:], a > 0]


def test_a_repeated_operation_has_the_same_layout():
    wanted = layouts(some_operations())
    with MetaResults():
        assert [layouts(some_operations()) for _ in range(2)] == [wanted] * 2


def test_a_repeated_operation_is_not_computed():
    computed = []

    def work():
        with MetaResults():
            return torch.empty(12_347, device="meta").add(1)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            computed.append(func)
            return func(*args, **(kwargs or {}))

    with Counting():
        assert [work().shape for _ in range(3)] == [(12_347,)] * 3
    assert computed.count(torch.ops.aten.add.Tensor) == 1


def test_what_changes_in_place_is_the_argument():
    with MetaResults():
        for _ in range(2):
            a = torch.empty(5, device="meta")
            assert a.mul_(2) is a
            view = a[1:]
            assert view.untyped_storage()._cdata == a.untyped_storage()._cdata
            assert a.resize_(9) is a
            assert a.shape == (9,)


def test_real_tensors_are_computed():
    with MetaResults():
        assert [(torch.tensor([value]) + 1).item() for value in (1, 2)] == [2, 3]
        counts = torch.zeros(2)
        for _ in range(2):
            torch._foreach_add_([counts], 1)
    assert counts.tolist() == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_new_tensors_have_the_dtype_of_the_moment(dtype):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with MetaResults():
            assert (torch.ones(3, dtype=torch.long, device="meta") / 2).dtype == dtype
    finally:
        torch.set_default_dtype(before)
