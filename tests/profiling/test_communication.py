"""The estimate of steps on many GPUs: its counts by hand, and that it says what it is."""

import io
import re

import pytest
import torch

from pmf_lightning import UserError
from pmf_lightning.commands.info import scaling
from pmf_lightning.info import main
from pmf_lightning.profiling import communication
from pmf_lightning.profiling.communication import Cluster, newton_schulz_flops

SMALL = ["model=pmf_tiny", "data=digits", "batch=64"]
CLUSTER = Cluster(
    name="two nodes of two",
    gpus_per_node=2,
    peak_tflops=1,
    share_of_peak=1,
    newton_schulz_share=1,
    memory_gb_s=1,
    within_node_gb_s=10,
    between_nodes_gb_s=1,
    share_of_bandwidth=0.5,
    latency_us=1000,
    bucket_mb=1,
    backward_share=0.5,
    overlapped=1,
)


@pytest.fixture(scope="module")
def found():
    return {(e.strategy, e.gpus): e for e in scaling([*SMALL, "gpus=[1,8,64]"])}


@pytest.fixture(scope="module")
def weights():
    """(all, in matrices) of the network, from its own parameters."""
    from pmf_lightning import build, compose
    from pmf_lightning.optim.optimizers import parameter_groups

    groups = parameter_groups(build(compose(SMALL), empty=True).network)
    sizes = {group["kind"]: sum(weight.numel() for weight in group["params"]) for group in groups}
    return sum(sizes.values()), sizes["muon"]


@pytest.mark.slow
def test_bytes_that_are_exchanged(found, weights):
    """All-reduce: reduce-scatter and gather, (n-1)/n of the numbers each; Muon's updates travel in half precision."""
    everything, matrices = weights
    ddp, fsdp = found["ddp", 8], found["fsdp", 8]
    assert ddp.gradients == pytest.approx(2 * 4 * everything * 7 / 8)
    assert ddp.updates == pytest.approx(2 * matrices * 7 / 8)
    assert fsdp.gradients == fsdp.weights == pytest.approx(4 * everything * 7 / 8)
    assert fsdp.updates == pytest.approx((4 + 2) * matrices / 8 * 7 / 8)


@pytest.mark.slow
def test_memory_that_stays(found, weights):
    """Weights, gradients, two averages, one moment of a matrix and two of anything else."""
    everything, matrices = weights
    whole = 4 * (2 + 2) * everything + 4 * matrices + 8 * (everything - matrices)
    assert found["ddp", 64].state == whole
    assert found["fsdp", 64].state == whole / 64 + 4 * everything


def test_one_gpu_talks_to_nobody(found):
    for strategy in ("ddp", "fsdp"):
        one = found[strategy, 1]
        assert (one.exchange, one.exposed, one.gradients, one.updates) == (0, 0, 0, 0)
        assert one.newton_schulz == one.newton_schulz_alone
        assert one.images_per_second == pytest.approx(64 / (one.network + one.newton_schulz + one.update))


def test_shared_work_shrinks_with_the_devices(found):
    assert found["ddp", 8].newton_schulz < found["ddp", 8].newton_schulz_alone / 4
    assert found["ddp", 64].network < found["ddp", 8].network / 6
    assert found["fsdp", 8].update == pytest.approx(found["ddp", 8].update / 8)


def test_gathering_in_two_stages():
    """10^9 bytes over 4 GPUs: half of them within the node at 5 GB/s; half of the other half between, at 0.5 GB/s."""
    assert CLUSTER.gathering(1e9, 2, 0) == pytest.approx(0.5 / 5)
    assert CLUSTER.gathering(1e9, 4, 0) == pytest.approx(0.5 / 5 + 0.25 / 0.5)
    assert CLUSTER.gathering(0, 4, 3) == pytest.approx(3 * 2 * 1e-3)
    assert CLUSTER.exchange(1e9, 2) == pytest.approx(1 / 5 + 1e-3)
    assert CLUSTER.exchange(1e9, 4) == pytest.approx(1 / 0.5 + 2e-3)


def test_operations_of_newton_schulz_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    from pmf_lightning.optim.newton_schulz import newton_schulz

    for shape in ((24, 8), (8, 24), (16, 16)):
        with FlopCounterMode(display=False) as counter:
            newton_schulz(torch.ones(1, *shape), dtype=torch.bfloat16)  # of a GPU
        assert newton_schulz_flops(shape) == counter.get_total_flops()


@pytest.mark.slow
def test_no_number_of_the_table_is_cut_off(call_command):
    """A pipe, or a narrow terminal, is no wider than 80 or 100 characters."""
    status, output, errors = call_command(main, "model=pmf_tiny", "data=digits", "batch=1024", "gpus=[1,8,1024]")
    assert status == 0, errors
    assert re.search(r"^ 1,024 +│ +1 │ fsdp │", output, re.M)
    assert "…" not in output


def test_the_table_says_that_it_is_an_estimate(found):
    from rich.console import Console

    from pmf_lightning import compose

    console = Console(width=160, file=io.StringIO())
    console.print(communication.table(compose(["model=pmf_tiny"], "info"), list(found.values())))
    text = " ".join(console.file.getvalue().split())
    assert "estimate" in text
    assert "not measured" in text
    assert "45% of 989 TFLOP/s" in text
    assert communication.as_json(list(found.values()))[0]["seconds"] == found["ddp", 1].seconds


def test_gpus_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match="gpus=7: batch=64 does not divide over them"):
        scaling([*SMALL, "gpus=[8,7]"])
    assert scaling(SMALL) == []
