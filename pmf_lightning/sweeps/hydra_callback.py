"""Hydra callback that prints a multirun's plan, cost and results, and writes sweep.json."""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config.compose import one_line
from pmf_lightning.sweeps import cost, jobs, messages, sweep_file
from pmf_lightning.sweeps.plan import PlannedRun, common_parent, fixed_keys, planned
from pmf_lightning.sweeps.preflight import Preflight
from pmf_lightning.sweeps.sweep_file import SweepRun
from pmf_lightning.training.run_dir import first_process
from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.locks import LockHeld, held
from pmf_lightning.utils.provenance import SWEEP, command_line


class Sweep(Callback):
    """Prints the plan and cost of a multirun, writes sweep.json, and prints at the end which runs are finished or left.

    For a single run it prints the cost only, if the run is large. Jobs that a launcher runs in other processes write
    their outcomes to a folder next to sweep.json until the end.

    Args:
        cluster: the file of conf/cluster with the GPU of the estimates.
        from_exaflop: the cost is printed from this size on; for runs at the scale of a paper always.
    """

    def __init__(self, cluster: str, from_exaflop: float):
        self.cluster, self.from_exaflop = cluster, from_exaflop
        self.folder: Path | None = None
        self.arms: list[SweepRun] = []
        self.about: dict[str, Any] = {}
        self.plan_known = True  # whether the runs are known before the first one starts
        self.unnamed_keys: set[str] = {"seed"}  # keys that are not part of a run's name

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the cost of a large run."""
        try:
            if first_process() and (line := self._analytic_cost([config])):
                print(line, flush=True)
        except (UserError, OmegaConfBaseException):
            pass  # the run that follows is refused for the same reason, and says so

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the plan and the cost; exit with code 2 if no run can start."""
        try:
            plan = planned(config)
        except UserError as error:
            _end(str(error))
        self.plan_known = plan is not None
        self.unnamed_keys |= fixed_keys(config)
        plan = plan or []
        self.arms = [one.arm for one in plan]
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        self.folder = common_parent(self.arms, Path(config.hydra.sweep.dir) / stamp)
        left = [one for one in plan if not one.finished]
        study = plan[0].cfg.get("study") if plan else None
        self.about = {
            **{"title": study and study.title, "study": study and study.name, "scale": study and study.get("scale")},
            **{"command": command_line(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
        }
        lines = (
            messages.start_message(self.arms, self.about, self.folder)
            if self.plan_known
            else [messages.unknown_plan(self.folder)]
        )
        print("\n".join([*lines, *filter(None, [self._cost(left)])]), flush=True)
        self._abort_if_all_refused(left)
        _lock_run_dirs([one.arm.run_dir for one in left if one.arm.run_dir is not None])
        self.arms = [replace(arm, error=None) for arm in self.arms]
        self._write()
        os.environ[SWEEP] = shlex.join(sys.argv[1:])  # for jobs in other processes
        jobs.at_the_end(lambda: os.environ.pop(SWEEP, None))
        jobs.at_the_end(self._finish)
        if config.hydra.launcher["_target_"].endswith(".JoblibLauncher"):
            jobs.defer_first_interrupt()

    def _cost(self, left: Sequence[PlannedRun]) -> str | None:
        """Describe the cost of the remaining runs: by FLOPs if any is large, else by the speed of finished runs."""
        cfgs = [one.cfg for one in left]
        try:
            if any(not cost.is_small(cfg) for cfg in cfgs):
                return self._analytic_cost(cfgs)
            return cost.measured_estimate([(one.arm, cost.images_of(one.cfg)) for one in left], self.arms)
        except (UserError, OmegaConfBaseException) as error:  # a shape that depends on missing data
            return f"no estimate of its cost: {one_line(error)}"

    def _analytic_cost(self, cfgs: Sequence[DictConfig]) -> str | None:
        if not cfgs or all(cost.is_small(cfg) for cfg in cfgs):
            return None
        arithmetic = cost.Arithmetic()
        flops = [arithmetic(cfg) for cfg in cfgs]
        if max(flops) < self.from_exaflop * cost.EXA and not any(cost.is_paper(cfg) for cfg in cfgs):
            return None
        return cost.analytic_estimate(flops, cost.load_cluster(self.cluster), arithmetic.counted)

    def _abort_if_all_refused(self, left: Sequence[PlannedRun]) -> None:
        """Abort the sweep if every remaining run would be rejected; stop checking at the first that would not."""
        preflight, reasons = Preflight(), []
        for one in left:
            reason = one.arm.error or preflight.refusal(one.cfg)
            if reason is None:
                return
            reasons.append(reason)
        if reasons:
            others = len(set(reasons)) - 1
            more = f" (and {counted(others, 'other reason')})" if others else ""
            runs = "the only remaining run is" if len(reasons) == 1 else f"all {len(reasons)} remaining runs are"
            _end(f"{runs} refused: {reasons[0]}{more}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the outcome of a job that ran outside the multirun's process."""
        if config.hydra.mode == RunMode.MULTIRUN and self.folder and not jobs.in_main_process() and jobs.outcomes():
            self._outcome_folder.mkdir(parents=True, exist_ok=True)
            outcome = jobs.outcomes()[-1]
            with sweep_file.atomic_write(self._outcome_folder / f"{outcome.number}.json") as draft:
                draft.write_text(json.dumps(asdict(outcome)))

    @property
    def _outcome_folder(self) -> Path:
        return self.folder / f".jobs-{self.about['started'].replace(':', '')}"

    def _finish(self) -> None:
        """Collect the outcomes of the jobs, write sweep.json and print the result."""
        for path in sorted(self._outcome_folder.glob("*.json")):
            jobs.outcomes().append(jobs.Outcome(**read_json(path)))
            path.unlink()
        if self._outcome_folder.is_dir():
            self._outcome_folder.rmdir()
        for outcome in sorted(jobs.outcomes(), key=lambda one: one.number):
            self._record(outcome)
        self._write()
        print("\n".join(messages.end_message(self.arms, self.folder)), flush=True)

    def _record(self, outcome: jobs.Outcome) -> None:
        folder = Path(outcome.run_dir) if outcome.run_dir else None
        if self.plan_known:
            arm = self.arms[outcome.number]
            left = arm.left and folder is None  # a signal ended the sweep before this run
            self.arms[outcome.number] = replace(arm, run_dir=arm.run_dir or folder, error=outcome.error, left=left)
            return
        self.arms = [arm for arm in self.arms if folder is None or arm.run_dir != folder]  # an earlier attempt
        of_job = dict(override.split("=", 1) for override in outcome.overrides)
        named = " ".join(f"{key}={value}" for key, value in of_job.items() if key not in self.unnamed_keys)
        self.arms.append(SweepRun(named, int(of_job.get("seed", 0)), folder, list(outcome.overrides), outcome.error))

    def _write(self) -> None:
        sweep_file.write(self.folder, self.arms, self.about)


def _lock_run_dirs(folders: Sequence[Path]) -> None:
    """Lock these run directories until the sweep is over; exit if another sweep has locked one of them."""
    locks = ExitStack()
    jobs.at_the_end(locks.close)
    for folder in folders:
        place, message = folder.resolve(), "uses it in its sweep; wait for it, or end it, or leave this run out"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(held(place.with_name(f".{place.name}.sweep"), f"run_dir={folder}", message))
        except LockHeld as error:
            _end(str(error))
        except OSError:
            continue  # the run itself will report that its directory is not writable


def _end(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(2)
