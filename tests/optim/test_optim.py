"""The optimiser against optax's numbers, and the promises it makes to training: resume, batching, missing gradients."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pmf_lightning.optim import muon_adam
from pmf_lightning.optim.muon_adam import MuonAdam
from pmf_lightning.optim.newton_schulz import newton_schulz
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.optim.side_by_side import side_by_side
from pmf_lightning.profiling.benchmarks.optimizer import benchmark_optimizer
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "reference" / "muon.npz"
MATRICES, REST = ("A", "B", "C", "D"), ("vec", "tok", "emb", "conv")
SHAPES = ((6, 6), (9, 4), (6, 6), (4, 9), (6, 6), (5,), (1, 3, 4))


def normal(*names, shape, dtype=torch.float64):
    return rng.normal("test_optim", *names, count=int(np.prod(shape))).reshape(shape).to(dtype)


def parameters(shapes=SHAPES, dtype=torch.float64):
    return [nn.Parameter(normal("start", i, shape=s, dtype=dtype)) for i, s in enumerate(shapes)]


def optimizer(weights, **options):
    kinds = {"muon": [w for w in weights if w.ndim == 2], "adam": [w for w in weights if w.ndim != 2]}
    groups = [{"params": members, "kind": kind} for kind, members in kinds.items() if members]
    return MuonAdam(groups, **{"lr": 1e-2, **options})


def train(weights, optim, steps, first=0):
    for step in range(first, first + steps):
        for i, weight in enumerate(weights):
            weight.grad = normal("gradient", step, i, shape=weight.shape, dtype=weight.dtype)
        optim.step()


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize(("dtype", "suffix", "bound"), [(torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-9)])
def test_updates_and_parameters_equal_optax(dtype, suffix, bound):
    with np.load(GOLDEN) as file:
        golden = {k: torch.from_numpy(v) for k, v in file.items()}

    def value(name):  # flax keeps (in, out) matrices, torch (out, in)
        return golden[name].mT if name.split("/")[1][0] in MATRICES else golden[name]

    # One set of weights goes back to zero after each step, so that it holds the bare update in full precision.
    walking = {k: nn.Parameter(value(f"p0/{k}").to(dtype).clone()) for k in MATRICES + REST}
    bare = {k: nn.Parameter(torch.zeros_like(w)) for k, w in walking.items()}
    optimisers = [optimizer(list(weights.values()), lr=1e-3) for weights in (walking, bare)]
    for step in (1, 2, 3):
        for weights, optim in zip((walking, bare), optimisers, strict=True):
            for k, weight in weights.items():
                weight.grad = value(f"g{step}/{k}").to(dtype).clone()
            optim.step()
        for k in MATRICES + REST:
            assert relative(bare[k].data, value(f"u{step}/{k}{suffix}").to(dtype)) < bound, (step, k)
            assert relative(walking[k].data, value(f"p{step}/{k}").to(dtype)) < 1e-6, (step, k)
            bare[k].data.zero_()


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 8, 20), (3, 20, 8)])
def test_newton_schulz_makes_singular_values_near_one(shape):
    matrices = normal("matrices", shape=shape, dtype=torch.float32)
    result = newton_schulz(matrices)
    values = torch.linalg.svdvals(result)
    assert result.dtype == matrices.dtype
    assert torch.linalg.svdvals(matrices).max() > 3  # the input is far from orthogonal
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_newton_schulz_is_its_definition_on_the_singular_values():
    u, _, v = torch.linalg.svd(normal("rotation", shape=(7, 5)), full_matrices=False)
    s = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    want = s / (s.norm() + 1e-8)
    for _ in range(4):
        want = 3.4445 * want - 4.7750 * want**3 + 2.0315 * want**5
    got = newton_schulz((u * s @ v)[None], steps=4)[0]
    torch.testing.assert_close(got, u * want @ v, rtol=0, atol=1e-12)


def ill_conditioned(rows, cols):
    """A matrix with singular values from 1 to 1e-4, as gradients have them."""
    u, v = (torch.linalg.qr(normal(name, shape=(n, min(rows, cols))))[0] for name, n in (("u", rows), ("v", cols)))
    return (u * torch.logspace(0, -4, min(rows, cols), dtype=torch.float64)) @ v.mT


def one_step_after_another(x):
    x = x / (x.norm() + 1e-8)
    for _ in range(5):
        g = x @ x.mT
        x = 3.4445 * x + (-4.7750 * g + 2.0315 * g @ g) @ x
    return x


@pytest.mark.parametrize("shape", [(208, 208), (200, 310), (310, 200), (40, 90)])
def test_panels_and_pairs_of_steps_lose_no_digits(shape):
    matrix = ill_conditioned(*shape)
    want = one_step_after_another(matrix)
    assert relative(newton_schulz(matrix[None])[0], want) < 1e-12
    plain = relative(one_step_after_another(matrix.float()).double(), want)
    assert relative(newton_schulz(matrix[None].float())[0].double(), want) < 2 * plain < 4e-5


def test_bfloat16_is_as_far_off_as_the_docs_say():
    matrix = ill_conditioned(200, 310)
    got, want = newton_schulz(matrix[None].float(), dtype=torch.bfloat16)[0].double(), newton_schulz(matrix[None])[0]
    assert 1e-3 < relative(got, want) < 0.1
    assert (got * want).sum() / got.norm() / want.norm() > 0.995
    weight, twin = (nn.Parameter(torch.zeros(200, 310)) for _ in range(2))
    weight.grad, twin.grad = matrix.float(), matrix.float()
    optimizer([weight], ns_dtype="bfloat16").step()
    optimizer([twin]).step()
    assert 1e-3 < relative(weight.data, twin.data) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_rounds_only_the_normalised_matrix(dtype):
    """The norm is that of the matrix as given, so that each number is rounded once, by at most 2^-8 of itself."""
    matrix = (1000 * normal("large", shape=(1, 64, 96))).to(dtype)
    start = newton_schulz(matrix, steps=0, dtype=torch.bfloat16).double()
    want = matrix.double() / matrix.double().norm()
    assert ((start - want).abs() / want.abs()).max() < 1.001 * 2**-8


def test_an_unknown_dtype_of_newton_schulz_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.ns_dtype=half: give auto, float32, bfloat16"):
        optimizer(parameters(), ns_dtype="half")


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(muon_adam, "CPU_ELEMENTS", 1)  # every matrix for itself
    alone, together = parameters(SHAPES * 3), parameters(SHAPES * 3)
    train(alone, optimizer(alone), 2)
    torch.set_num_threads(2)
    try:
        train(together, optimizer(together), 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_work_side_by_side_is_done_once_without_gradients_and_its_errors_arrive(threads):
    torch.set_num_threads(threads)
    done = []
    try:
        side_by_side([lambda i=i: done.append((i, torch.is_grad_enabled())) for i in range(20)])
        assert sorted(done) == [(i, False) for i in range(20)]
        with pytest.raises(ZeroDivisionError):
            side_by_side([lambda: 1 // 0] * 20)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def test_newton_schulz_of_zero_is_zero():
    assert torch.equal(newton_schulz(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("elements", [2**26, 80, 1])
def test_batched_matrices_move_as_they_would_alone(monkeypatch, elements):
    monkeypatch.setattr(muon_adam, "CPU_ELEMENTS", elements)
    together, alone = parameters(), parameters()
    single = [optimizer([weight]) for weight in alone]
    train(together, optimizer(together), 3)
    for i, (weight, optim) in enumerate(zip(alone, single, strict=True)):
        for step in range(3):
            weight.grad = normal("gradient", step, i, shape=weight.shape)
            optim.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_order_of_parameters_does_not_matter():
    straight, mixed = parameters(), parameters()
    train(straight, optimizer(straight), 3)
    train(mixed, optimizer(mixed[::-1]), 3)
    for a, b in zip(straight, mixed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_missing_gradients_skip_only_their_own_parameters():
    weights, full = parameters(), parameters()
    optim, reference = optimizer(weights), optimizer(full)
    train(weights, optim, 1)
    train(full, reference, 1)
    before = [weight.detach().clone() for weight in weights]
    missing = {0, 3, 5}
    for i, (weight, twin) in enumerate(zip(weights, full, strict=True)):
        twin.grad = normal("gradient", 1, i, shape=twin.shape)
        weight.grad = None if i in missing else twin.grad.clone()
    optim.step()
    reference.step()
    for i, (weight, twin) in enumerate(zip(weights, full, strict=True)):
        assert torch.equal(weight, before[i]) == (i in missing)
        torch.testing.assert_close(weight, before[i] if i in missing else twin.detach(), rtol=0, atol=1e-13)
    # From here on the step counts differ: a late one moves as its twin did before, the others go on with theirs.
    want = [twin.detach().clone() for twin in full]
    train(weights, optim, 1, first=1)
    train(full, reference, 1, first=1)
    for i, (weight, twin) in enumerate(zip(weights, full, strict=True)):
        torch.testing.assert_close(weight.detach(), want[i] if i in missing else twin.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resume_is_bit_exact_through_a_checkpoint_file(dtype):
    weights = parameters(dtype=dtype)
    optim = optimizer(weights)
    train(weights, optim, 2)
    weights[0].grad = None
    optim.step()  # step counts now differ
    file = io.BytesIO()
    torch.save({"weights": [w.data for w in weights], "optimizer": optim.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(w) for w in stored["weights"]]
    restored = optimizer(resumed, lr=0.5)
    restored.load_state_dict(stored["optimizer"])
    assert restored.param_groups[0]["lr"] == 1e-2
    for old, new in zip(weights, resumed, strict=True):
        assert set(optim.state[old]) == set(restored.state[new])
        for name, value in optim.state[old].items():
            same = (
                torch.equal(value, restored.state[new][name])
                if torch.is_tensor(value)
                else value == restored.state[new][name]
            )
            assert same, name
    train(weights, optim, 3, first=3)
    train(resumed, restored, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(weights, resumed, strict=True))
    assert all(torch.isfinite(w).all() for w in weights)


def test_a_state_of_other_kinds_is_refused():
    matrix = nn.Parameter(torch.zeros(3, 3))
    state = MuonAdam([{"params": [matrix], "kind": "adam"}], lr=1e-3).state_dict()
    with pytest.raises(ValueError, match=r"\['adam'\].*\['muon'\]"):
        MuonAdam([{"params": [matrix], "kind": "muon"}], lr=1e-3).load_state_dict(state)


def test_closure_runs_with_gradients_and_its_loss_comes_back():
    weight = nn.Parameter(torch.ones(2, 2))
    optim = optimizer([weight])

    def closure():
        optim.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optim.step(closure).item() == 4
    assert not torch.equal(weight.detach(), torch.ones(2, 2))


def test_schedule_reaches_both_kinds():
    weights = [nn.Parameter(torch.zeros(s)) for s in ((3, 3), (4,))]
    optim = optimizer(weights, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: 1.0 if step == 0 else 0.0)
    train(weights, optim, 1)
    schedule.step()
    before = [weight.detach().clone() for weight in weights]
    train(weights, optim, 1, first=1)
    assert all(b.abs().max() > 0 and torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_weight_decay_is_decoupled():
    decayed, plain = parameters(), parameters()
    train(decayed, optimizer(decayed, weight_decay=0.1), 1)
    train(plain, optimizer(plain), 1)
    for with_decay, without, start in zip(decayed, plain, parameters(), strict=True):
        torch.testing.assert_close(without - with_decay, 1e-2 * 0.1 * start, rtol=0, atol=1e-13)


def test_gradients_of_another_precision_are_taken():
    weight, twin = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    gradient = normal("low", shape=(4, 4), dtype=torch.bfloat16)
    weight.grad_dtype = None  # torch's switch for gradients of any dtype
    weight.grad, twin.grad = gradient, gradient.float()
    optimizer([weight]).step()
    optimizer([twin]).step()
    assert weight.dtype == torch.float32
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("group", [{"kind": "sgd"}, {}])
def test_unknown_kind_is_refused_by_name(group):
    with pytest.raises(ValueError, match=repr(group.get("kind"))):
        MuonAdam([{"params": [nn.Parameter(torch.zeros(2, 2))], **group}], lr=1e-3)


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        MuonAdam([{"params": [nn.Parameter(torch.zeros(2, 3, 4))], "kind": "muon"}], lr=1e-3)


@pytest.mark.parametrize("bad", [{"lr": -1e-3}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"betas": [0.9, 1]}])
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        optimizer(parameters(), **bad)


def tagged():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    for layer in module:
        layer.optim_kinds = {name: "muon" if p.ndim == 2 else "adam" for name, p in layer.named_parameters()}
    return module


def test_groups_follow_the_tags_in_module_order():
    module = tagged()
    module[0].optim_kinds["weight"] = "adam"  # as a label table: 2-D, yet not for Muon
    module[1].bias.requires_grad_(False)
    muon, adam = parameter_groups(module)
    assert (muon["kind"], adam["kind"]) == ("muon", "adam")
    expected = [module[0].weight, module[0].bias, module[2].weight, module[2].bias]
    assert [id(p) for p in muon["params"]] == [id(module[1].weight)]
    assert [id(p) for p in adam["params"]] == [id(p) for p in expected]


def test_tags_survive_a_copy_and_a_shared_parameter_counts_once():
    module = tagged()
    module.append(module[0])
    module.append(nn.Linear(3, 4, bias=False))
    module[4].weight, module[4].optim_kinds = module[0].weight, {"weight": "muon"}
    muon, adam = parameter_groups(copy.deepcopy(module).double())
    assert [tuple(p.shape) for p in muon["params"]] == [(4, 3), (2, 4)]
    assert len(adam["params"]) == 4


def test_empty_groups_are_left_out():
    assert [group["kind"] for group in parameter_groups(tagged()[2])] == ["adam"]
    assert parameter_groups(tagged().requires_grad_(False)) == []


@pytest.mark.parametrize(
    "kinds", [{"weight": "muon"}, {"weight": "muon", "bias": "sgd"}, {"weight": "muon", "bias": "muon"}]
)
def test_bad_tags_name_the_parameter(kinds):
    module = tagged()
    module[1].optim_kinds = kinds
    with pytest.raises(ValueError, match=r"1\.bias"):
        parameter_groups(module)


def test_untagged_parameter_is_refused():
    with pytest.raises(ValueError, match="parameter weight has optim_kind None"):
        parameter_groups(nn.Linear(2, 2, bias=False))


def test_benchmark_reports_both_rivals_and_leaves_the_module_alone():
    module = tagged()
    before = copy.deepcopy(module.state_dict())
    tables = benchmark_optimizer(module, repeats=3)
    assert list(tables) == ["muon", "adam", "step"]
    assert (tables["muon"]["count"], tables["muon"]["elements"]) == (2, 20)
    assert (tables["adam"]["count"], tables["adam"]["elements"]) == (4, 10)
    for kind in ("muon", "adam"):
        assert 0 < tables[kind]["ratio_min"] <= tables[kind]["ratio"] <= tables[kind]["ratio_max"]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_benchmark_refuses_nothing_to_measure():
    with pytest.raises(UserError, match="repeats is 0"):
        benchmark_optimizer(tagged(), repeats=0)
    with pytest.raises(UserError, match="ns_dtype=half"):
        benchmark_optimizer(tagged(), ns_dtype="half")
    with pytest.raises(UserError, match="no trainable parameters"):
        benchmark_optimizer(tagged().requires_grad_(False))
