"""The duration and the speed of a run that was resumed."""

from unittest.mock import Mock

import pytest
from lightning import LightningModule, Trainer

from pmf_lightning.training.callbacks import throughput
from pmf_lightning.training.callbacks.throughput import ThroughputBar

MODULE = Mock(spec=LightningModule)


def session(clock, monkeypatch, seconds, steps, state=None, pause=0.0):
    """Train ``steps`` steps of 10 images, each in ``seconds``, after 5 seconds of preparation; return the callback.

    Before each step is counted, other callbacks draw and evaluate for ``pause`` seconds.
    """
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    bar = ThroughputBar(10, 100, started=clock[0])
    clock[0] += 5
    if state is not None:
        bar.load_state_dict(state)
    trainer = Mock(spec=Trainer, global_step=0, is_global_zero=False)
    bar.on_train_start(trainer, MODULE)
    for _ in range(steps):
        clock[0] += seconds
        trainer.global_step += 1
        with bar.paused():
            clock[0] += pause
        bar.on_train_batch_end(trainer, MODULE)
    return bar


def test_a_resumed_run_counts_the_seconds_and_the_steps_of_all_sessions(monkeypatch):
    clock = [100.0]
    first = session(clock, monkeypatch, seconds=1.0, steps=5)  # the first step is not timed
    assert first.wall_seconds == 10
    assert first.images_per_second == first.overall_images_per_second == 10
    stored = first.state_dict()
    clock[0] += 1000  # killed: lost
    second = session(clock, monkeypatch, seconds=4.0, steps=5, state=stored)
    assert second.wall_seconds == 10 + 25
    assert second.images_per_second == 2.5
    assert second.overall_images_per_second == pytest.approx(80 / (4 + 16))
    third = session(clock, monkeypatch, seconds=1.0, steps=0, state=second.state_dict())  # nothing was left to train
    assert third.wall_seconds == 10 + 25 + 5
    assert third.images_per_second == 0
    assert third.overall_images_per_second == second.overall_images_per_second


def test_pauses_count_for_the_duration_and_not_for_the_speed(monkeypatch):
    clock = [0.0]
    first = session(clock, monkeypatch, seconds=1.0, steps=5, pause=100.0)
    assert (first.wall_seconds, first.idle) == (10 + 500, 500)
    assert first.images_per_second == first.overall_images_per_second == 10
    second = session(clock, monkeypatch, seconds=1.0, steps=5, state=first.state_dict(), pause=7.0)
    assert second.overall_images_per_second == 10
