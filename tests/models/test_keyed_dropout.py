"""Dropout by key: rates, scale, independence of rows, sites and positions, and masks that depend on nothing else."""

import math

import pytest
import torch
from common import normal

from pmf_lightning.models.dropout import keep_mask, keyed_dropout
from pmf_lightning.utils import rng

SIZE = 1 << 14


def keys(count, name="keys"):
    return torch.tensor([rng.key("tests", name, i) for i in range(count)])


def hashed(key, site, place, rate):
    """The mask of one number in Python's integers."""
    word = 2**32 - 1

    def mixed(x):
        for _ in range(2):
            x = (x ^ x >> 16) * 0x45D9F3B & word
        return x ^ x >> 16

    low = mixed(mixed(key & word) ^ site)
    odd = mixed(key >> 32 & word ^ low) >> 1 | 1
    return mixed((mixed(place) ^ low) * odd & word) >= round(rate * 2**32)


def test_masks_are_the_arithmetic_of_integers():
    chosen = torch.tensor([0, 1, -1, -(2**63), 2**63 - 1, 2**32, rng.key("a")])
    for site in (0, 7, 2**31 + 5):
        mask = keep_mask(chosen, site, 50, 0.3)
        expected = [[hashed(key, site, place, 0.3) for place in range(50)] for key in chosen.tolist()]
        assert mask.tolist() == expected
    assert not torch.equal(keep_mask(chosen, 0, 50, 0.3)[0], mask[1])


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_rate_and_scale(rate):
    x = normal("dropout", shape=(8, 64, SIZE // 64)).abs() + 1
    out = keyed_dropout(x, keys(8), 3, rate)
    kept = out != 0
    assert torch.allclose(out[kept], (x / (1 - rate))[kept])
    std = math.sqrt(rate * (1 - rate) / SIZE)
    for row in kept:
        assert abs(row.double().mean() - (1 - rate)) < 4.5 * std
    assert abs(kept.double().mean() - (1 - rate)) < 4.5 * std / math.sqrt(8)
    assert abs(out.mean() / x.mean() - 1) < 5 * std / (1 - rate) / math.sqrt(8) * 1.2


def test_no_dropout_is_the_identity():
    x = normal("dropout", shape=(3, 5))
    assert keyed_dropout(x, keys(3), 0, 0) is x
    assert torch.allclose(keyed_dropout(x, keys(3), 0, 1e-12), x)


def correlations(masks):
    """Between all pairs of rows, times sqrt(size): standard normal where they are independent."""
    centred = masks.double() - masks.double().mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True)
    pairs = (unit @ unit.T)[tuple(torch.triu_indices(len(masks), len(masks), 1))]
    return pairs * math.sqrt(masks.shape[1])


NEIGHBOURS = {
    "rows": lambda: keep_mask(keys(40), 5, SIZE, 0.2),
    "keys that count up": lambda: keep_mask(torch.arange(40), 5, SIZE, 0.2),
    "keys that differ in their high half": lambda: keep_mask(torch.arange(40) << 32, 5, SIZE, 0.2),
    "keys that differ in one bit": lambda: keep_mask(1 << torch.arange(40), 5, SIZE, 0.2),
    "sites": lambda: torch.cat([keep_mask(keys(1), site, SIZE, 0.2) for site in range(40)]),
    "positions of one row": lambda: keep_mask(keys(1), 5, 40 * SIZE, 0.2).view(40, SIZE),
    "positions side by side": lambda: keep_mask(keys(1), 5, 40 * SIZE, 0.2).view(SIZE, 40).T,
    "positions, shifted": lambda: torch.stack([keep_mask(keys(1), 5, SIZE, 0.2)[0].roll(i) for i in range(40)]),
}


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_masks_are_independent(kind):
    masks = NEIGHBOURS[kind]()
    values = correlations(masks)  # 780 pairs
    assert len(values) == 780
    assert values.abs().max() < 5
    assert 0.85 < values.square().mean() < 1.15 or kind == "positions, shifted"  # where pairs repeat each other
    counts = masks.sum(0).double()  # at one position over all rows: binomial
    if kind != "positions, shifted":
        assert abs(counts.var() / (40 * 0.2 * 0.8) - 1) < 0.06


def test_a_row_alone_is_the_row_in_a_batch():
    x, chosen = normal("dropout", shape=(6, 7, 11)), keys(6)
    whole = keyed_dropout(x, chosen, 2, 0.4)
    order = torch.tensor([4, 0, 5])
    assert torch.equal(keyed_dropout(x[order], chosen[order], 2, 0.4), whole[order])
    assert torch.equal(keyed_dropout(x[3:4], chosen[3:4], 2, 0.4), whole[3:4])
    assert torch.equal(keyed_dropout(x.flatten(1), chosen, 2, 0.4), whole.flatten(1))
    assert torch.equal(keep_mask(chosen, 2, 77, 0.4), keep_mask(chosen, 2, 100, 0.4)[:, :77])


def test_the_same_again_and_without_the_global_generator():
    x, chosen = normal("dropout", shape=(4, 100)), keys(4)
    before = torch.get_rng_state()
    first = keyed_dropout(x, chosen, 1, 0.3)
    torch.manual_seed(123)
    assert torch.equal(keyed_dropout(x, chosen, 1, 0.3), first)
    torch.set_rng_state(before)
    keyed_dropout(x, chosen, 1, 0.3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(keyed_dropout(x, chosen, 2, 0.3), first)
    assert not torch.equal(keyed_dropout(x, chosen + 1, 1, 0.3), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradient_and_dtype(dtype):
    x = normal("dropout", shape=(2, 50)).to(dtype).requires_grad_()
    out = keyed_dropout(x, keys(2), 0, 0.25)
    assert out.dtype == dtype
    out.sum().backward()
    assert torch.allclose(x.grad, torch.where(keep_mask(keys(2), 0, 50, 0.25), 1 / 0.75, 0.0).to(dtype))


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_bad_rates(rate):
    with pytest.raises(ValueError, match=rf"dropout {rate} is not in \[0, 1\)"):
        keyed_dropout(torch.zeros(1, 2), keys(1), 0, rate)
