"""The contents of a report about a sweep, as plain text; markdown.py and writing.py format it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pmf_lightning.reports.claims import Finding, Verdict, check, compare_arms, seeds_of, sentence, verdict_of
from pmf_lightning.reports.formatting import higher_is_better, in_words, is_number, show_paper, show_time, spread
from pmf_lightning.reports.runs import Run
from pmf_lightning.reports.sweeps import Sweep, text
from pmf_lightning.reports.table import Table, table_of

MARKS = {True: "yes", False: "no", None: "open"}


@dataclass(frozen=True)
class Picture:
    """A PNG file in the page's folder; ``kind`` is "drawn", or "pixels" for pictures that may be shown small."""

    title: str
    file: str
    kind: str


@dataclass(frozen=True)
class IndexRow:
    """A sweep as one table row: the paper's numbers and ours for the first claim, and the cost of the sweep."""

    finding: str
    source: str
    paper: str
    ours: str
    answer: str
    seeds: str
    cost: str


@dataclass
class SweepPage:
    """The report of a sweep. ``claims`` are (yes, no or open; the claim; the finding)."""

    name: str
    title: str
    source: str
    link: str | None
    answer: str
    verdict: Verdict
    claims: Sequence[tuple[str, str, str]]
    table: Table
    troubles: Sequence[str]
    notes: Sequence[str]
    commands: Sequence[str]
    facts: Sequence[tuple[str, str]]
    headline: IndexRow
    pictures: list[Picture] = field(default_factory=list)


def section_of(sweep: Sweep) -> SweepPage:
    """Return the report of a sweep."""
    study = sweep.study
    paper = {arm.name: arm.paper for arm in sweep.arms if arm.paper is not None}
    findings = _findings(sweep)
    verdict = verdict_of(findings) if study else compare_arms(_spreads(sweep), sweep.measure or "nothing")
    return SweepPage(
        name=f"{sweep.name}-{study.scale}" if study else sweep.name,
        title=study.title if study else f"Sweep {sweep.name}",
        source=study.source if study else "",
        link=study.link if study else None,
        answer=f"Reproduced: {verdict.answer}" if study else f"{verdict.answer[:1].upper()}{verdict.answer[1:]}",
        verdict=verdict,
        claims=[(MARKS[finding.holds], finding.claim.says, sentence(finding, paper)) for finding in findings],
        table=table_of(sweep),
        troubles=_troubles(sweep),
        notes=_notes(sweep),
        commands=list(dict.fromkeys(str(run.record["command"]) for run in sweep.runs if run.record.get("command"))),
        facts=_facts(sweep),
        headline=_headline(sweep, findings, verdict),
    )


def _spreads(sweep: Sweep) -> dict:
    found = {arm.name: arm.spread(sweep.measure) for arm in sweep.arms} if sweep.measure else {}
    return {name: value for name, value in found.items() if value}


def _findings(sweep: Sweep) -> list[Finding]:
    if not sweep.study:
        return []
    found = []
    for claim in sweep.study.claims:
        key = claim.of or sweep.study.measure
        found.append(check(claim, {arm.name: arm.values(key) for arm in sweep.arms}, sweep.study.measure))
    return found


def _troubles(sweep: Sweep) -> list[str]:
    """Return a line for each run without a result, and for each arm without a run."""
    lines = []
    for arm in sweep.arms:
        if not arm.runs:
            lines.append(f"{arm.name}: {arm.state}, {arm.reason or 'it has no run'}")
        for run in arm.runs:
            if reason := run.reason or (_no_number(run, sweep.measure) if run in arm.without(sweep.measure) else ""):
                seed = "" if run.seed is None else f", seed {run.seed}"
                lines.append(f"{arm.name}{seed}: {run.state}, {reason}")
    return [*lines, *sweep.omitted]


def _no_number(run: Run, measure: str) -> str:
    value = run.number(measure)
    return f"without {measure}" if value is None else f"but its {measure} is {text(value)}, not a number"


def _notes(sweep: Sweep) -> list[str]:
    """Return notes on how to read the table."""
    notes = []
    if sweep.study:
        notes += [sweep.study.note] if sweep.study.note else []
        notes += [f"The paper's numbers: {sweep.study.paper_measure}."] if sweep.study.paper_measure else []
        extra = [arm.name for arm in sweep.arms if arm.name not in sweep.study.paper]
        notes += [f"Not in the study's table: {', '.join(extra)}."] if extra else []
    finished = [run for run in sweep.runs if run.state == "finished"]
    metrics = list(dict.fromkeys(run.summary["metric"] for run in finished if run.summary.get("metric")))
    if metrics:
        notes.append(f"The measure is {', '.join(metrics)}; lower is better.")
    elif any(is_number(run.number("fd")) for run in finished):
        floor = spread([run.number("fd_floor") for run in finished])
        real = f" The fd of as many held-out images is {floor.span}." if floor else ""
        notes.append(f"fd is a Frechet distance in the features of a small classifier, not FID; lower is better.{real}")
    if any(len(arm.finished) > 1 for arm in sweep.arms):
        notes.append("Numbers over several seeds: mean (minimum to maximum).")
    return notes


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    """Return commit, date, machine, software and time, if run.json and summary.json have them."""
    records = [run.record for run in sweep.runs if run.record]
    commits = {
        f"{r['commit']}{' and uncommitted changes' if r.get('uncommitted') else ''}" for r in records if r.get("commit")
    }
    dates = sorted({run.started[:10] for run in sweep.runs if run.started})
    seconds = [run.number("wall_seconds") for run in sweep.runs if is_number(run.number("wall_seconds"))]
    facts = [
        ("commit", ", ".join(sorted(commits))),
        ("date", " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else ""),
        ("machine", "; ".join(dict.fromkeys(map(_machine, records)))),
        ("software", "; ".join(dict.fromkeys(map(_software, records)))),
        ("time", _time(seconds)),
    ]
    return [(name, value) for name, value in facts if value]


def _machine(record) -> str:
    threads, cores = record.get("threads"), record.get("cores")
    parts = [
        str(record.get("device") or ""),
        f"{in_words(threads, 'thread')} of {in_words(cores, 'core')}" if threads and cores else "",
    ]
    return ", ".join(part for part in parts if part)


def _software(record) -> str:
    versions = record.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "pmf_lightning")


def _time(seconds: Sequence[float | int]) -> str:
    if not seconds:
        return ""
    if len(seconds) == 1:
        return show_time(seconds[0])
    low, high = show_time(min(seconds)), show_time(max(seconds))
    each = low if low == high else f"{low} to {high}"
    return f"{each} a run, {show_time(sum(seconds))} for {len(seconds)} runs"


def _headline(sweep: Sweep, findings: Sequence[Finding], verdict: Verdict) -> IndexRow:
    spreads, study = _spreads(sweep), sweep.study
    shown = _headline_arms(sweep, findings)
    paper = {arm.name: arm.paper for arm in sweep.arms if arm.paper is not None}
    seconds = spread([run.number("wall_seconds") for run in sweep.runs if run.state == "finished"])
    cost = in_words(len(sweep.arms), "arm") + (f", {show_time(seconds.mean)} each" if seconds else "")
    seeds = re.sub(" per arm$", "", seeds_of(list(spreads.values())))
    return IndexRow(
        finding=study.title if study else f"sweep {sweep.name}",
        source=study.source if study else "",
        paper="; ".join(f"{arm} {show_paper(paper[arm])}" for arm in shown if arm in paper),
        ours="; ".join(f"{arm} {spreads[arm]}" for arm in shown if arm in spreads),
        answer=verdict.short,
        seeds=re.sub(r"^one seed$", "1", seeds.removesuffix(" seeds")),
        cost=cost,
    )


def _headline_arms(sweep: Sweep, findings: Sequence[Finding]) -> list[str]:
    """Return the arms of the first claim about the measure, at most four; without claims the best and the worst."""
    for finding in findings:
        if finding.claim.of is None:
            return list(finding.claim.arms[:4])
    spreads = _spreads(sweep)
    ranked = sorted(spreads, key=lambda arm: spreads[arm].mean, reverse=higher_is_better(sweep.measure or ""))
    return ranked[:1] + ranked[-1:] if len(ranked) > 1 else ranked
