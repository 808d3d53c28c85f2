"""Messages of a sweep about its runs, as lists of lines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmf_lightning.sweeps.sweep_file import SweepRun
from pmf_lightning.utils.cache import ERROR
from pmf_lightning.utils.counted import counted


def start_message(arms: Sequence[SweepRun], about: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the plan: arms and seeds, which runs are finished, and which are left."""
    names, seeds = list(dict.fromkeys(arm.arm for arm in arms)), sorted({arm.seed for arm in arms})
    counts = Counter(arm.state for arm in arms)
    lines = [f"{about['study']}: {about['title']}"] if about["study"] else []
    product = f"{counted(len(names), 'arm')} x {counted(len(seeds), 'seed')}"
    runs = product if len(names) * len(seeds) == len(arms) else counted(len(arms), "run")
    where = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "missing")
    scale = f" at scale {about['scale']}" if about["scale"] else ""
    lines.append(f"{runs}{scale} in {folder}: {where or 'none begun'}")
    if counts["finished"] < len(arms):
        lines += listed("left", [arm for arm in arms if arm.state != "finished"])
    lines += [f"  {_label(arm)} will be refused: {arm.error}" for arm in arms if arm.error]
    return lines


def unknown_plan(folder: Path) -> str:
    """Return the message for a sweeper that chooses its runs while it goes."""
    return f"the sweeper chooses the runs during the sweep; {folder / 'sweep.json'} will list them"


def end_message(arms: Sequence[SweepRun], folder: Path) -> list[str]:
    """Return the result: finished runs, failed ones with the reason, remaining ones, and the report command."""
    counts = Counter(arm.state for arm in arms)
    left = counts["missing"] + counts["stopped"]
    lines = [
        f"sweep of {counted(len(arms), 'run')}: {counts['finished']} finished, {counts['failed']} failed, {left} left"
    ]
    failed = [arm for arm in arms if arm.state == "failed"]
    reasons = {arm.error or _stored_error(arm) for arm in failed}
    if len(failed) > 1 and len(reasons) == 1:
        lines.append(f"  all {len(failed)} that failed: {reasons.pop()}")
    else:
        lines += [f"  {_label(arm)}: {arm.error or _stored_error(arm)}" for arm in failed]
    lines += listed("left", [arm for arm in arms if arm.state in ("missing", "stopped")]) if left else []
    if counts["finished"]:
        lines.append(f"compare the runs: python -m pmf_lightning.report {folder}")
    return lines


def listed(title: str, arms: Sequence[SweepRun]) -> list[str]:
    """Return a line per arm with its seeds."""
    seeds: dict[str, list[str]] = {}
    for arm in arms:
        seeds.setdefault(arm.arm, []).append(f"{arm.seed}{' (begun)' if arm.state == 'stopped' else ''}")
    return [f"  {title}: {' '.join(filter(None, [name, 'seed', ', '.join(of)]))}" for name, of in seeds.items()]


def _label(arm: SweepRun) -> str:
    return f"{arm.arm} seed {arm.seed}".strip()


def _stored_error(arm: SweepRun) -> str:
    """Return the error stored in the run directory."""
    return (arm.run_dir / ERROR).read_text().strip()
