"""The environment's words of how a process was started: what is left over is ignored, with a warning."""

import pytest

from pmf_lightning import UserError
from pmf_lightning.distributed.launched import local_rank, settle, srun_tasks

TASK = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train"}
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **MEETING}


@pytest.mark.parametrize(
    ("words", "left", "warned"),
    [
        ({}, {}, ""),
        # an interactive allocation, and scripts that start one process without srun
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash", "SLURM_JOB_ID": "1"}, {"SLURM_JOB_ID"}, "SLURM_NTASKS=4"),
        ({**TASK, "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, {"SLURM_STEP_ID"}, "put srun in front"),
        ({**TASK, "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "zsh"}, set(), "SLURM_NTASKS=2"),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "job"}, set(), "SLURM_NTASKS=8"),
        ({"SLURM_PROCID": "3"}, set(), "SLURM_PROCID=3"),
        ({"SLURM_NTASKS": ""}, set(), ""),
        ({"SLURM_NTASKS": "", "RANK": " ", "LOCAL_RANK": ""}, set(), ""),
        # containers
        ({"RANK": "1"}, set(), "RANK=1: no launcher started this process"),
        ({"LOCAL_RANK": "1"}, set(), "LOCAL_RANK=1"),
        ({"NODE_RANK": "2", "WORLD_SIZE": "4"}, set(), "NODE_RANK=2 WORLD_SIZE=4"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, set(), ""),
        ({"LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1"}, {"MASTER_ADDR"}, "LOCAL_RANK=1"),
    ],
)  # fmt: skip
def test_what_is_left_over_is_ignored(words, left, warned):
    words = dict(words)
    warnings = settle(words)
    assert srun_tasks(words) == 1
    assert not {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_NTASKS"} & words.keys()
    assert set(left) <= words.keys()
    assert (warned in warnings[0]) if warned else not warnings
    assert settle(words) == []  # said once


@pytest.mark.parametrize(
    "words",
    [
        TORCHRUN,
        {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "SLURM_JOB_NAME": "bash"},
        {**TASK, "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
        {**TASK, "SLURM_NTASKS": "4", "RANK": "0", **MEETING},
        {**TASK, "SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "pmf"},
        {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", **MEETING},  # a child of Lightning's
        {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **MEETING},
    ],
)
def test_what_launchers_set_stays(words):
    settled = dict(words)
    assert settle(settled) == []
    assert settled == words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"SLURM_NTASKS": "four"}, "SLURM_NTASKS=four: it must be an integer"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK=1.0"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, "MASTER_ADDR, MASTER_PORT not set"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0"}, "LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"),
        ({"RANK": "1", **MEETING}, "WORLD_SIZE not set"),
        ({**TORCHRUN, "RANK": "2"}, "RANK=2 WORLD_SIZE=2: ranks count from 0 to 1"),
        ({**TASK, "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "RANK": "0"}, "RANK=0, but SLURM_PROCID=2"),
        ({**TASK, "SLURM_NTASKS": "2", "SLURM_PROCID": "5"}, "SLURM_PROCID=5 SLURM_NTASKS=2"),
    ],
)
def test_words_that_do_not_fit_each_other_are_one_line(words, said):
    with pytest.raises(UserError) as caught:
        settle(dict(words))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", ["", "many", "4"])
def test_tasks_of_an_environment_that_nobody_settled(count):
    assert srun_tasks({"SLURM_NTASKS": count}) == 1


@pytest.mark.parametrize(
    ("words", "rank"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "2"}, 2),
        ({**TASK, "SLURM_NTASKS": "4", "SLURM_LOCALID": "3"}, 3),
        ({"SLURM_NTASKS": "4", "SLURM_LOCALID": "3"}, 0),  # left over: srun did not start this process
    ],
)
def test_the_number_of_a_process_on_its_machine(words, rank):
    assert local_rank(words) == rank
