"""The memory that is counted for a step beside that of whole runs."""

import pytest
import torch
from torch import Tensor, nn

from pmf_lightning import compose
from pmf_lightning.optim import muon_adam
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.profiling import step_memory
from pmf_lightning.profiling.live_bytes import MemoryTracker, peak_bytes
from pmf_lightning.profiling.model_facts import find_facts
from pmf_lightning.profiling.step_memory import StepMemory
from pmf_lightning.train import train


def test_a_process_keeps_what_the_passes_freed():
    parts = {"weights": 10, "gradients": 10, "optimizer": 10, "averages": 30}
    memory = StepMemory(micro_batch=2, **parts, activations=200, update=50, update_on_cpu=20, queues=7)
    assert memory.fixed == 60
    assert memory.peak == 260
    assert memory.process == 287


@pytest.mark.parametrize("elements", [1, 3 * 64 * 64, 2**26])
def test_repeated_matrices_need_the_memory_of_one_part(elements, monkeypatch):
    for module in (muon_adam, step_memory):
        monkeypatch.setattr(module, "STACK_ELEMENTS", elements)
        monkeypatch.setattr(module, "CPU_ELEMENTS", min(elements, 2 * 64 * 64))
    network = nn.ModuleList([*(nn.Linear(64, 64) for _ in range(8)), nn.Linear(64, 32)]).to("meta")
    weights = list(network.parameters())
    for layer in network:
        layer.optim_kinds = {"weight": "muon", "bias": "adam"}
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    whole = muon_adam.MuonAdam(parameter_groups(network), lr=0.1)
    whole.step()
    peaks = [peak_bytes(whole.step)]
    whole.part_elements = min(elements, 2 * 64 * 64)
    peaks.append(peak_bytes(whole.step))
    moments = sum(one.nbytes for state in whole.state.values() for one in state.values() if isinstance(one, Tensor))

    counted = step_memory.optimizer_memory(muon_adam.MuonAdam(parameter_groups(network), lr=0.1), weights)

    assert counted == (moments, *peaks)
    assert sum(weight.grad is None for weight in weights) == (7 if elements == 1 else 6)  # all but one part


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pmf_digits", "imf_digits", "jit_tiny", "drifting_tiny"])
def test_the_count_is_that_of_a_whole_run(model, tmp_path):
    """Everything from the first weight to the checkpoint: data, draws, losses, optimiser, averages."""
    options = ["metrics=none", "sample_grid.enabled=false", "steps=3", "data=digits"]
    cfg = compose([f"model={model}", *options, f"run_dir={tmp_path}/run"])
    counted = find_facts(cfg).memory
    with MemoryTracker() as live:
        train(cfg)
    assert counted.peak == pytest.approx(live.peak, rel=0.15)
