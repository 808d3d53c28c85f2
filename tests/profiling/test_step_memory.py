"""The memory that is counted for a step beside that of whole runs."""

import pytest

from pmf_lightning import compose
from pmf_lightning.profiling.live_bytes import MemoryTracker
from pmf_lightning.profiling.model_facts import find_facts
from pmf_lightning.profiling.step_memory import StepMemory
from pmf_lightning.train import train


def test_a_process_keeps_what_the_passes_freed():
    parts = {"weights": 10, "gradients": 10, "optimizer": 10, "averages": 30}
    memory = StepMemory(micro_batch=2, **parts, activations=200, update=50, update_on_cpu=20, queues=7)
    assert memory.fixed == 60
    assert memory.peak == 260
    assert memory.process == 287


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
