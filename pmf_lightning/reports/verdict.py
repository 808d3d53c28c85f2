"""From checked claims to a verdict, in words. Nothing but the claims decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmf_lightning.reports.claims import Finding, check
from pmf_lightning.reports.numbers import Spread, counted, higher_is_better, show, show_paper


@dataclass(frozen=True)
class Verdict:
    """``answer`` is yes, no, partly or open (and for sweeps without a paper "best: ..."); ``words`` explain it."""

    answer: str
    words: str


def judge(findings: Sequence[Finding]) -> Verdict:
    """Return yes where all claims hold, no where none does, open where none can be checked, and else partly."""
    held = sum(finding.holds is True for finding in findings)
    failed = sum(finding.holds is False for finding in findings)
    unknown = len(findings) - held - failed
    if not findings:
        return Verdict("open", "The study makes no claim that could be checked.")
    if held == failed == 0:
        which = "The one claim" if len(findings) == 1 else f"None of the {len(findings)} claims"
        return Verdict("open", f"{which} could {'not ' if len(findings) == 1 else ''}be checked yet.")
    answer = "yes" if held == len(findings) else "no" if held == 0 else "partly"
    return Verdict(answer, " ".join([_count(held, failed, unknown, len(findings)), *_caution(findings)]))


def _count(held: int, failed: int, unknown: int, total: int) -> str:
    if total == 1:
        return f"The one claim {'holds' if held else 'does not hold'}."
    if held == total:
        return f"All {total} claims hold."
    if failed == total:
        return f"None of the {total} claims holds."
    said = [f"{held} of {total} claims {'holds' if held == 1 else 'hold'}"]
    said += [f"{failed} {'does' if failed == 1 else 'do'} not"] if failed else []
    said += [f"{unknown} {'is' if unknown == 1 else 'are'} open"] if unknown else []
    return ", ".join(said) + "."


def _caution(findings: Sequence[Finding]) -> list[str]:
    """Say on how many seeds this rests, and which ranges of seeds overlap."""
    seeds = seeds_of([s for finding in findings for s in finding.spreads.values()])
    said = [f"{seeds[:1].upper()}{seeds[1:]}."] if seeds else []
    pairs = list(dict.fromkeys(pair for finding in findings for pair in finding.meets))
    if pairs:
        shown = [f"{a} and {b}" for a, b in pairs[:3]] + ([f"{len(pairs) - 3} more pairs"] if len(pairs) > 3 else [])
        said.append(f"The ranges of seeds overlap for {', '.join(shown)}.")
    return said


def seeds_of(spreads: Sequence[Spread]) -> str:
    """Say how many seeds numbers come from: "one seed per arm", "3 seeds per arm", "1 to 3 seeds per arm"."""
    counts = sorted({value.seeds for value in spreads})
    if not counts:
        return ""
    if len(counts) == 1:
        return f"{counted(counts[0], 'seed')} per arm"
    return f"{counts[0]} to {counts[-1]} seeds per arm"


def sentence(finding: Finding, paper: Mapping[str, float | int | None]) -> str:
    """Write what a claim met: our numbers, the paper's beside them, and how sure the seeds make it."""
    ours = ", ".join(f"{arm} {value}" for arm, value in finding.spreads.items())
    said = [f"ours ({finding.key.replace('_', ' ')}): {ours}{_ratio(finding)}" if ours else ""]
    if finding.claim.of is None:
        theirs = check(finding.claim, {arm: [value] for arm, value in paper.items()}, finding.key)
        numbers = ", ".join(f"{arm} {show_paper(value.mean)}" for arm, value in theirs.spreads.items())
        said.append(f"the paper: {numbers}{_ratio(theirs)}" if numbers else "")
    if finding.claim.factor > 1:
        most = "at most" if finding.claim.kind == "alike" else "more than"
        said.append(f"claimed: {most} {finding.claim.factor:g} times")
    if finding.lacking:
        said.append(f"no number for {', '.join(finding.lacking)}")
    said.append(seeds_of(list(finding.spreads.values())))
    if finding.meets:
        said.append(f"the ranges of seeds overlap for {', '.join(f'{a} and {b}' for a, b in finding.meets)}")
    elif finding.holds and not finding.always:
        said.append("not so for every choice of seeds")
    return "; ".join(part for part in said if part)


def _ratio(finding: Finding) -> str:
    """Say by which factor, where the claim asks for one."""
    return "" if finding.ratio is None or finding.claim.factor == 1 else f", {show(finding.ratio)} times"


def compare_arms(spreads: Mapping[str, Spread], key: str) -> Verdict:
    """Return the verdict of a sweep that checks no claims: the best arm, and whether its seeds meet the next one's."""
    ranked = sorted(spreads, key=lambda arm: spreads[arm].mean, reverse=higher_is_better(key))
    if len(ranked) < 2:
        only = f" {ranked[0]} alone has {key} {spreads[ranked[0]]}." if ranked else ""
        return Verdict("open", f"There is nothing to compare yet.{only}")
    first, second = ranked[:2]
    a, b = spreads[first], spreads[second]
    words = f"{key} {a}; next is {second} with {b}."
    if a.seeds + b.seeds > 2:
        words += " Their ranges of seeds overlap." if a.meets(b) else " Their ranges of seeds do not overlap."
    seeds = seeds_of(list(spreads.values()))
    return Verdict(f"best: {first}", f"{words} {seeds[:1].upper()}{seeds[1:]}.")
