"""The rivals that benchmarks time do the same work, and the arithmetic they are held against is counted right."""

import json
from types import SimpleNamespace

import pytest
import torch
from common import objective, relative, rows, tiny_network
from shrunk import RUN
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from pmf_lightning import compose
from pmf_lightning.benchmark import benchmark
from pmf_lightning.objectives.meanflow_reference import textbook_loss
from pmf_lightning.objectives.preconditioners import EDM
from pmf_lightning.profiling.benchmarks.roofline import _by_kind
from pmf_lightning.profiling.benchmarks.timing import ratios, time_interleaved
from pmf_lightning.profiling.step_memory import step_flops
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.rng import BatchRows

SMALL = [*RUN, "data.resolution=8", "backbone.patch=4", "repeats=1", "images_at_once=4"]


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
@pytest.mark.parametrize("change", [{}, {"prediction": "u"}, {"preconditioner": EDM(0.5, 1.0)}], ids=["x", "u", "edm"])
def test_the_textbook_step_has_our_loss_and_gradients(form, change):
    network, goal, (batch, draws) = tiny_network(), objective(jvp=form, **change), rows()
    losses = goal(network, batch, draws)
    losses.total.backward()
    ours = torch.cat([weight.grad.flatten() for weight in network.parameters()])
    network.zero_grad()
    total, sums = textbook_loss(goal, network, batch, draws)
    total.backward()
    theirs = torch.cat([weight.grad.flatten() for weight in network.parameters()])
    for name, value in losses.per_sample.items():
        torch.testing.assert_close(sums[name], value)
    assert relative(total, losses.total) < 1e-12
    assert relative(theirs, ours) < 1e-10


@pytest.mark.parametrize("change", [{"v_target": "plain"}, {"v_source": "boundary"}, {"jvp_tangent": "target"}])
def test_the_textbook_knows_no_variants(change):
    batch, draws = rows()
    with pytest.raises(ValueError, match="the textbook step knows"):
        textbook_loss(objective(**change), tiny_network(), batch, draws)


def test_race_lets_rivals_take_turns():
    seen = []
    times = time_interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3)
    assert "".join(seen) == "ab" + "ab" + "ba" + "ab"  # the first pair is not measured
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}


def test_ratios_compare_turn_by_turn():
    assert ratios([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]) == {"ratio": 2.0, "ratio_min": 1.0, "ratio_max": 3.0}


def test_flops_on_the_meta_device_are_those_of_a_real_step():
    network, goal = tiny_network(dtype=torch.float32), objective(jvp="one_pass")
    batch, _ = rows(dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        goal(network, batch, goal.draw(batch, 0, 0)).total.backward()
    assert step_flops(network.to("meta"), goal, len(batch.y), BatchRows()) == counter.get_total_flops()


@pytest.mark.slow
def test_step_command(tmp_path):
    out = tmp_path / "step.json"
    result = benchmark(compose(["what=step", "against=textbook", f"out={out}", *SMALL], "benchmark"))
    assert json.loads(out.read_text()) == result
    assert result["textbook"]["gradient_difference"] < 1e-5
    assert result["parts_ms"].keys() == {"guidance", "derivative", "forward", "backward", "optimizer", "averages"}
    assert min(result["parts_ms"].values()) >= 0
    kinds = {kind: row for kind, row in result["operations"].items() if kind != "copy_gb_per_second"}
    assert kinds.keys() == {"products", "attention", "pointwise", "copies", "host"}
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)
    # The profiler's counts of products and ours of attention are nearly all operations of the step.
    counted = sum(kinds[kind]["gflop_per_second"] * kinds[kind]["ms"] / 1e3 for kind in ("products", "attention"))
    assert counted == pytest.approx(result["gflop"], rel=0.1)
    assert 0 < result["share_of_matmul_peak"] < 1


@pytest.mark.slow
def test_step_without_a_derivative():
    result = benchmark(compose(["what=step", "model=jit_tiny", "repeats=1", "images_at_once=2", *RUN[:6]], "benchmark"))
    assert "textbook" not in result
    assert "derivative" not in result["parts_ms"]


def test_kernels_of_a_gpu_are_counted_once():
    """The profiler lists a kernel in the operation that started it, and by itself."""

    def event(key, device_type, ms):
        shapes = {"input_shapes": [[4, 4], [4, 4]], "flops": 128}
        times = {"self_device_time_total": 1e3 * ms, "self_cpu_time_total": 5e3 * ms}
        return SimpleNamespace(key=key, device_type=device_type, count=1, **times, **shapes)

    events = [event("aten::mm", DeviceType.CPU, 3), event("gemm_kernel", DeviceType.CUDA, 3)]
    events += [event("aten::add", DeviceType.CPU, 1), event("guidance", DeviceType.CUDA, 4)]
    rows = _by_kind(events, on_gpu=True)
    assert {kind: row["ms"] for kind, row in rows.items() if row} == {"products": 3, "pointwise": 1}
    assert _by_kind(events, on_gpu=False)["products"]["ms"] == 15


@pytest.mark.slow
def test_growth_command():
    points = ["growth.batch=[{images_at_once: 2}, {images_at_once: 4}]", "growth.size=[{backbone: {width: 64}}]"]
    result = benchmark(compose(["what=growth", *SMALL, "curves=[size,batch]", *points], "benchmark"))
    size, batch = result["curves"]["size"], result["curves"]["batch"]
    assert list(result["curves"]) == ["size", "batch"]
    assert [point["images"] for point in batch] == [2, 4]
    assert size[0]["parameters"] > 1.5 * batch[0]["parameters"]
    assert {point["tokens"] for point in (*size, *batch)} == {size[0]["tokens"]}
    assert min(point[key] for point in (*size, *batch) for key in ("ms", "processor_ms")) > 0


@pytest.mark.slow
def test_sampling_command():
    result = benchmark(compose(["what=sampling", *SMALL, "sampling_batches=[1,3]"], "benchmark"))
    assert result["nfe"] == 1
    assert result["batches"].keys() == {"1", "3"}
    assert result["batches"]["3"]["images_per_second"] == pytest.approx(3e3 / result["batches"]["3"]["ms"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["repeats=some"], "repeats=some: set it to an integer, 1 or more"),
        (["images_at_once=0"], "images_at_once=0: set it to an integer, 1 or more"),
        (["against=lunch"], "against=lunch: give textbook, or null"),
        (["what=growth", "curves=[sise]"], "curves=sise: there is no such curve; did you mean size"),
        (["what=growth", "curves=[size]", "growth.size=[{backbon: {width: 8}}]"], "growth: .* does not fit the config"),
        (["model=drifting_tiny", "against=textbook"], "against=textbook: Drifting has no textbook step"),
        (["against=textbook", "objective.v_source=boundary"], "against=textbook: the textbook step knows"),
        (["what=sampling", "compile=true"], "compile=true: what=sampling measures the network without the compiler"),
        (["what=optimizer", "trainer=gpu"], "trainer.accelerator=gpu"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words):
        benchmark(compose(["what=step", "repeats=1", "images_at_once=2", *RUN, *changes], "benchmark"))


@pytest.mark.parametrize("what", ["step", "growth", "sampling"])
def test_an_autoencoder_is_refused(what):
    with pytest.raises(UserError, match=f"what={what}: model=mae_tiny generates no images; choose a generator"):
        benchmark(compose([f"what={what}", "model=mae_tiny"], "benchmark"))
