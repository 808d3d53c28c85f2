"""The number of CPU threads, chosen from times that a made-up machine gives: no clock runs here."""

from itertools import pairwise

import pytest
import torch

from pmf_lightning.utils import threads
from pmf_lightning.utils.threads import CHOSEN_BY_USER, ThreadChoice, fixed, may_choose, one_if_busy

CALM = {1: 0.2, 4: 0.1}
BUSY = {1: 0.25, 4: 4.0}
SMALL = {1: 0.1, 4: 0.13}  # a network so small that threads only cost


def run(choice, machine, steps):
    """Take ``steps`` steps; return the numbers of threads that they had, their times and the lines."""
    used, times, lines = [], [], []
    for _ in range(steps):
        used.append(choice.threads)
        times.append(machine[choice.threads])
        lines += [line] if (line := choice.record(times[-1])) else []
    return used, times, lines


@pytest.mark.parametrize(
    ("machine", "chosen", "tried"), [(CALM, 4, 3), (BUSY, 1, 1), (SMALL, 1, 3)], ids=["calm", "busy", "small"]
)
def test_the_faster_number_is_chosen_in_the_first_steps(machine, chosen, tried):
    choice = ThreadChoice(4)
    assert choice.chosen is None
    used, _, lines = run(choice, machine, 1 + 2 * tried)
    assert used == [1] + [1, 4] * tried  # a slow try is the last one
    assert (choice.threads, choice.chosen, len(lines)) == (chosen, chosen, 1)
    assert lines[0].startswith(f"threads=auto: {chosen} from here on (a step takes {machine[1]} s with one")


def test_one_slow_step_changes_nothing_and_two_do():
    choice = ThreadChoice(4, start=4)
    run(choice, CALM, 20)
    assert run(choice, BUSY, 1)[0] == [4]
    run(choice, CALM, 1)
    assert choice.threads == 4
    used, _, lines = run(choice, BUSY, 3)
    assert used == [4, 4, 1]
    assert lines == ["threads=auto: 1 from here on (a step takes 4 s with 4, usually 0.1 s)"]


def test_twice_the_usual_time_is_no_reason():
    choice = ThreadChoice(4, start=4)
    run(choice, CALM, 20)
    assert set(run(choice, {4: 0.2}, 20)[0]) == {4}


def test_slow_steps_become_usual_ones_only_by_changing():
    """The median is that of quick steps: slow ones do not raise it, even when they come with quick ones between."""
    choice = ThreadChoice(4, start=4)
    run(choice, CALM, 10)
    for _ in range(30):
        run(choice, BUSY, 1)
        run(choice, CALM, 1)
    run(choice, BUSY, 2)
    assert choice.threads == 1


def test_all_threads_return_when_the_machine_is_calm_again():
    choice = ThreadChoice(4)
    run(choice, BUSY, 500)
    assert choice.chosen == 1
    _, _, lines = run(choice, CALM, 5000)
    assert choice.chosen == 4
    assert lines == ["threads=auto: 4 from here on (a step takes 0.2 s with one, 0.1 s with 4)"]


@pytest.mark.parametrize("slower", [1.01, 2, 20, 200])
def test_tries_cost_less_than_two_percent_and_become_rare(slower):
    machine = {1: 0.25, 4: 0.25 * slower}
    used, times, _ = run(ThreadChoice(4, start=1), machine, 40_000)
    tries = [step for step, number in enumerate(used) if number == 4]
    assert 2 <= len(tries) <= 20
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert all(later >= earlier for earlier, later in pairwise(gaps))
    upto = sum(times[: tries[-1]])  # what a try costs is waited for after it
    assert upto < 1.02 * 0.25 * tries[-1]


def test_a_resumed_run_starts_with_its_number_on_the_same_kind_of_machine():
    assert run(ThreadChoice(4, start=4), CALM, 50)[0] == [4] * 50
    assert run(ThreadChoice(4, start=1), CALM, 50)[0] == [1] * 50
    assert ThreadChoice(4, start=8).chosen is None  # there are other cores here


@pytest.mark.parametrize("name", threads.CHOSEN_BY_USER)
def test_the_environment_decides_first(name, monkeypatch):
    for variable in threads.CHOSEN_BY_USER:
        monkeypatch.delenv(variable, raising=False)
    assert not may_choose()  # one thread leaves no choice
    with fixed(2):
        assert may_choose()
        monkeypatch.setenv(name, "2")
        assert not may_choose()


def test_a_fixed_number_ends_with_its_block():
    before = torch.get_num_threads()
    for inside, expected in ((before + 1, before + 1), (None, before)):
        with fixed(inside):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == before
    with pytest.raises(KeyboardInterrupt), fixed(before + 1):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("machine", "device", "variable", "used"),
    [(BUSY, "cpu", "", 1), (CALM, "cpu", "", 4), (BUSY, "cuda", "", 4), (BUSY, "cpu", "4", 4)],
    ids=["busy", "calm", "GPU", "set by the user"],
)
def test_one_thread_while_all_are_slower(machine, device, variable, used, monkeypatch, capsys):
    for name in CHOSEN_BY_USER:
        monkeypatch.setenv(name, variable)
    monkeypatch.setattr(threads, "_trial", machine.get)
    with fixed(4):
        with one_if_busy(device):
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == 4
    line = "threads: 1 (a product takes 0.25 s with one thread and 4 s with 4)\n"
    assert capsys.readouterr().out == (line if used == 1 else "")


def test_a_trial_runs_with_its_number_of_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(threads.time, "perf_counter", lambda: seen.append(torch.get_num_threads()) or 2.0 * len(seen))
    before = torch.get_num_threads()
    assert threads._trial(2) == 2.0
    assert (set(seen), torch.get_num_threads()) == ({2}, before)
