"""Group runs into sweeps and arms: by their study, or by their overrides."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pmf_lightning.reports.formatting import Spread, is_number, slug, spread
from pmf_lightning.reports.runs import STATES, Run, read_runs
from pmf_lightning.reports.settings import differences, fingerprint, settings_of
from pmf_lightning.reports.study import Study, read_study
from pmf_lightning.utils.errors import some_of

MEASURES = ("fid", "fd", "class_accuracy")  # a sweep without a study uses the first that any run has
MOST_LETTERS = 48  # of an arm's name, so that it fits beside a plot; the table has the settings
MOST_DIFFERENCES = 3  # that the line about an omitted run names
_CHOICES = ("model", "experiment")  # their values are shown without the key


@dataclass(frozen=True)
class ReportArm:
    """The runs of one setting, one per seed; ``columns`` are the values that a table shows of the setting.

    ``reason`` is the error of an arm without any run. ``paper`` is the paper's number, if any.
    """

    name: str
    runs: Sequence[Run]
    columns: Mapping[str, str]
    paper: float | int | None = None
    reason: str = ""

    @property
    def finished(self) -> list[Run]:
        """The finished runs; only they count."""
        return [run for run in self.runs if run.state == "finished"]

    @property
    def state(self) -> str:
        """The best state of its runs, in the order finished, failed, stopped, missing."""
        states = [run.state for run in self.runs] or ["failed" if self.reason else "missing"]
        return next(state for state in STATES if state in states)

    def values(self, key: str) -> list[Any]:
        """Return the values of a key of summary.json in the finished runs."""
        return [run.number(key) for run in self.finished]

    def without(self, key: str | None) -> list[Run]:
        """Return the finished runs whose value of a key is not a number; none if there is no key."""
        return [run for run in self.finished if key and not is_number(run.number(key))]

    def spread(self, key: str) -> Spread | None:
        """Return mean and range of a number over the seeds, None if no finished run has it."""
        return spread([value for value in self.values(key) if is_number(value)])


@dataclass(frozen=True)
class Sweep:
    """Arms compared by ``measure``; ``study`` is None without a paper; ``omitted`` has a line per omitted run."""

    name: str
    arms: Sequence[ReportArm]
    measure: str | None
    study: Study | None
    omitted: Sequence[str] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, arm by arm."""
        return [run for arm in self.arms for run in arm.runs]


def read_sweeps(roots: Sequence[Path]) -> list[Sweep]:
    """Return the studies below all ``roots``, and for each root a sweep of its other runs on each data set.

    Runs on different data are not compared: their distances are in different features. Raises UserError as
    ``read_runs`` does, and for an invalid study.
    """
    studies: dict[tuple[str, str], list[Run]] = defaultdict(list)
    others: dict[tuple[Path, str], list[Run]] = defaultdict(list)  # by root and name of the data
    failed_early: dict[Path, list[Run]] = defaultdict(list)  # runs that failed before they had a configuration
    seen: set[Path] = set()
    for root in roots:
        for run in read_runs(root):
            if (place := run.folder.resolve()) in seen:
                continue
            seen.add(place)
            if not run.config:
                failed_early[root].append(run)
            elif block := run.config.get("study"):
                studies[str(block.get("name")), str(block.get("scale"))].append(run)
            else:
                others[root, str((run.config.get("data") or {}).get("name"))].append(run)
    every_early = [run for runs in failed_early.values() for run in runs]
    sweeps = [_of_study(runs, every_early) for runs in studies.values()]
    sets = Counter(root for root, _ in others)
    for (root, data), runs in others.items():
        name = f"{root.resolve().name}-{data}" if sets[root] > 1 else root.resolve().name
        sweeps.append(_of_settings(name, runs, failed_early.pop(root, [])))  # named once, in the first sweep of a root
    return sweeps


def _of_study(runs: Sequence[Run], failed_early: Sequence[Run]) -> Sweep:
    newest = max(runs, key=lambda run: run.started)
    study = read_study(newest.config["study"], newest.source)
    by_arm: dict[str, list[Run]] = defaultdict(list)
    for run in _told_apart(runs):
        by_arm[str(run.config["study"].get("arm"))].append(run)
    arms, omitted = [], []
    for name in [*study.paper, *(name for name in by_arm if name not in study.paper)]:
        same, others = _of_one_setting(by_arm.get(name, []))
        chosen, older = _one_per_seed(same, [study.measure])
        omitted += older + others
        columns = (chosen[0].config["study"].get("columns") or {}) if chosen else {}
        reason = "" if chosen else _early_error(name, runs, failed_early)
        arms.append(
            ReportArm(name, chosen, {str(k): text(v) for k, v in columns.items()}, study.paper.get(name), reason)
        )
    return Sweep(study.name, arms, study.measure, study, omitted)


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs; those of one name, which several roots may have, with their folders as names."""
    count = Counter(run.name for run in runs)
    return [replace(run, name=str(run.folder)) if count[run.name] > 1 else run for run in runs]


def _of_one_setting(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs of the setting with most seeds (of several, the newest), and a line about each of the others."""
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if not differences(run, group[0])), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    kept = max(groups, key=_extent, default=[])
    return kept, [_unlike(run, kept[0]) for group in groups if group is not kept for run in group]


def _extent(runs: Sequence[Run]) -> tuple[int, int, str]:
    """Return the number of seeds with a result, the number of seeds, and the last start."""
    finished = {run.seed for run in runs if run.state == "finished"}
    return len(finished), len({run.seed for run in runs}), max(run.started for run in runs)


def _unlike(run: Run, kept: Run) -> str:
    """Return the line about a run that is omitted because its setting is not that of ``kept``."""
    parts = [f"{key} {_brief(one)} instead of {_brief(other)}" for key, (one, other) in differences(run, kept).items()]
    return f"{run.name} is omitted: unlike {kept.name} it has {some_of(parts, MOST_DIFFERENCES)}"


def _brief(value: Any) -> str:
    return "another group" if isinstance(value, Mapping) else text(value)


def _early_error(arm: str, runs: Sequence[Run], failed_early: Sequence[Run]) -> str:
    """Return the error of an arm that failed before it had a configuration, found by the name of its directory."""
    parents = {run.folder.parent for run in runs}
    names = (f"{arm}-seed", f"{slug(arm)}-seed")  # names of a run directory and in runs.json
    return (
        next((r.error for r in failed_early if r.folder.parent in parents and r.folder.name.startswith(names)), "")
        or ""
    )


def _of_settings(title: str, runs: Sequence[Run], failed_early: Sequence[Run]) -> Sweep:
    by_arm: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run, setting in zip(runs, settings_of(runs), strict=True):
        by_arm[(*((key, text(value)) for key, value in setting.items()), fingerprint(run))].append(run)
    arms, omitted = [], [f"{run.name} failed before it began: {run.error}" for run in failed_early]
    for (*setting, _), members in by_arm.items():
        chosen, older = _one_per_seed(members, MEASURES)
        omitted += older
        name = ", ".join(value if key in _CHOICES else f"{key.rpartition('.')[2]} {value}" for key, value in setting)
        if not 0 < len(name) <= MOST_LETTERS:
            name = _name_of(chosen[0], len(by_arm))
        arms.append(ReportArm(name, chosen, dict(setting)))
    summaries = [run.summary for arm in arms for run in arm.finished]
    measure = next((key for key in MEASURES if any(is_number(summary.get(key)) for summary in summaries)), None)
    return Sweep(title, _unique(arms), measure, None, omitted)


def _name_of(run: Run, arms: int) -> str:
    """Return the name of an arm whose overrides are none or too many: the model's, or of several arms the run's."""
    return run.name if arms > 1 else str(run.config.get("name", "one arm"))


def _unique(arms: list[ReportArm]) -> list[ReportArm]:
    """Rename arms with equal names: they show the complete keys, and if these are equal too the first run."""
    for rename in (
        lambda arm: ", ".join(f"{key} {value}" for key, value in arm.columns.items()),
        lambda arm: f"{arm.name} ({arm.runs[0].name})",
    ):
        names = [arm.name for arm in arms]
        arms = [replace(arm, name=rename(arm)) if names.count(arm.name) > 1 else arm for arm in arms]
    return arms


def _one_per_seed(runs: Sequence[Run], measures: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return one run per seed, and a line about each of the others.

    Of several, it is the newest finished run in which one of ``measures`` is a number, else the newest finished one.
    """
    by_seed: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        by_seed[run.seed].append(run)
    chosen, others = [], []
    for _, same in sorted(by_seed.items(), key=lambda item: (item[0] is None, item[0])):
        best = max(same, key=lambda run: (run.state == "finished", _is_measured(run, measures), run.started, run.name))
        chosen.append(best)
        others += [
            f"{run.name} is omitted: {best.name} has the same setting and seed" for run in same if run is not best
        ]
    return chosen, others


def _is_measured(run: Run, measures: Sequence[str]) -> bool:
    return any(is_number(run.number(measure)) for measure in measures)


def text(value: Any) -> str:
    """Format a value of a configuration for a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10000 else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(text(part) for part in value) + "]"
    return " ".join(str(value).split())
