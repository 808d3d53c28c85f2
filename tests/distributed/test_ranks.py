"""Processes that know each other say soon and usefully what went wrong, whichever of them it was."""

import os
import threading
import time

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from ranks import together


def ranks_and_sum():
    dist.init_process_group("gloo")
    mine = torch.tensor([float(os.environ["RANK"]) + 1])
    dist.all_reduce(mine)
    return rank_zero_only.rank, int(mine)


def test_they_know_each_other_and_answer_in_order():
    assert together(3, ranks_and_sum) == [(0, 6), (1, 6), (2, 6)]


def fail_on_the_second(how):
    if os.environ["RANK"] == "1":
        how()
    dist.init_process_group("gloo")  # the first waits for the second, for half an hour


def stumble():
    raise KeyError("a stone")


def vanish():
    os._exit(7)


@pytest.mark.parametrize(
    ("how", "message"), [(stumble, r"rank 1:\n(.*\n)+KeyError: 'a stone'"), (vanish, "rank 1:\ngone .*, exit code 7")]
)
def test_one_that_fails_is_not_waited_for(how, message):
    with pytest.raises(AssertionError, match=message):  # not "not done after 100 s"
        together(2, fail_on_the_second, how, timeout=100)


def wait_for_ever():
    if os.environ["RANK"] == "0":
        threading.Event().wait()
    time.sleep(1000)


def test_those_that_wait_for_ever_are_shown_with_their_stacks():
    with pytest.raises(AssertionError, match="not done after 6 s") as told:
        together(2, wait_for_ever, timeout=6)
    first, second = str(told.value).split("rank 1:\n")
    assert "in wait_for_ever" in first
    assert "in wait_for_ever" in second
    assert "threading.py" in first
    assert "threading.py" not in second
