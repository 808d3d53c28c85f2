"""Claims: statements of a paper's table in a form that can be checked on any numbers.

A claim is a mapping with ``says`` (the sentence) and exactly one of

    lower: a, than: [b, ...], by: 2    a is better than each of them, by a factor (default 1)
    ordered: [a, b, c]                 each is better than the next
    best: a                            a is better than every other arm
    alike: [a, b, ...], within: 1.5    the largest is at most this factor times the smallest

a, b, c are arms. Every claim may set ``of: class_accuracy``, a key of summary.json other than the study's measure.
Better means lower, or higher for the keys in formatting.HIGHER_IS_BETTER.

A claim holds or not by the means over seeds. It stays open if the result depends on an arm without a number.
``overlapping`` lists compared arms whose ranges of seeds overlap. ``always`` is True if the claim holds for every
choice of seeds.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

from pmf_lightning.reports.formatting import Spread, higher_is_better, in_words, is_number, show, show_paper, spread
from pmf_lightning.utils.errors import UserError, suggestions

KINDS = {"lower": ("than", "by"), "ordered": (), "best": (), "alike": ("within",)}

_COMMON = ("says", "of")


@dataclass(frozen=True)
class Claim:
    """One claim; ``arms`` are in its order (for ``best`` the best first), ``factor`` is ``by`` or ``within``."""

    says: str
    kind: str
    arms: tuple[str, ...]
    factor: float
    of: str | None = None


@dataclass(frozen=True)
class Finding:
    """The result of checking a claim; ``holds`` is None while it is open: arms in ``missing`` have no number."""

    claim: Claim
    key: str
    spreads: Mapping[str, Spread]
    holds: bool | None
    overlapping: tuple[tuple[str, str], ...]
    always: bool
    missing: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """The smallest factor between the first arm and another; "alike": largest over smallest; "ordered": None."""
        means = [self.spreads[arm].mean for arm in self.claim.arms if arm in self.spreads]
        if len(means) < 2 or min(means) <= 0 or self.claim.kind == "ordered":
            return None
        if self.claim.kind == "alike":
            return max(means) / min(means)
        if self.claim.arms[0] not in self.spreads:
            return None
        first, *others = means
        return first / max(others) if higher_is_better(self.key) else min(others) / first


def read_claims(raw: Any, arms: Collection[str], where: str) -> list[Claim]:
    """Parse the claims of a study. Raises UserError, with ``where`` as prefix, for anything outside the grammar."""
    if not isinstance(raw, (list, tuple)):
        raise UserError(f"{where}: claims={raw!r}; give a list of claims")
    return [_read(item, list(arms), f"{where}: claim {number}") for number, item in enumerate(raw, 1)]


def check(claim: Claim, numbers: Mapping[str, Sequence[Any]], measure: str) -> Finding:
    """Check a claim on the numbers of each arm, one per seed, of the key ``claim.of`` or else ``measure``."""
    key = claim.of or measure
    found = {arm: spread(numbers.get(arm, ())) for arm in claim.arms}
    known = {arm: value for arm, value in found.items() if value is not None}
    sign = -1.0 if higher_is_better(key) else 1.0
    if claim.kind == "alike":
        right, overlapping = _alike(claim, [value.mean for value in known.values()]), []
        always = all(_alike(claim, [a.high, b.low]) for a, b in permutations(known.values(), 2))
    else:
        pairs = list(_pairs(claim, known))
        right = all(_better(known[a].mean, known[b].mean, claim.factor, sign) for a, b in pairs)
        always = all(_surely(known[a], known[b], claim.factor, sign) for a, b in pairs)
        overlapping = [(a, b) for a, b in pairs if known[a].overlaps(known[b]) and known[a].seeds + known[b].seeds > 2]
    missing = tuple(arm for arm in claim.arms if arm not in known)
    holds = None if right and missing else right
    return Finding(claim, key, known, holds, tuple(overlapping), always, missing)


def _pairs(claim: Claim, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (better, worse) for each comparison whose arms both have numbers."""
    arms = [arm for arm in claim.arms if arm in known]
    if claim.kind == "ordered":
        yield from pairwise(arms)
    elif claim.arms[0] in known:
        yield from ((arms[0], other) for other in arms[1:])


def _better(a: float, b: float, factor: float, sign: float) -> bool:
    return a * factor < b if sign > 0 else a > b * factor


def _surely(a: Spread, b: Spread, factor: float, sign: float) -> bool:
    """Return whether a is better for every pair of seeds."""
    return _better(a.high, b.low, factor, sign) if sign > 0 else _better(a.low, b.high, factor, sign)


def _alike(claim: Claim, values: Sequence[float]) -> bool:
    if len(values) < 2 or max(values) == min(values):
        return True
    return min(values) > 0 and max(values) <= claim.factor * min(values)


def _read(item: Any, arms: list[str], where: str) -> Claim:
    if not isinstance(item, Mapping):
        raise UserError(f"{where}: {item!r} is not a mapping; give says and one of {', '.join(KINDS)}")
    kinds = [kind for kind in KINDS if kind in item]
    if not item.get("says"):
        raise UserError(f"{where}: says is missing; give the claim as a sentence")
    where = f"{where} ({item['says']})"
    if len(kinds) == 1:
        allowed = (*_COMMON, kinds[0], *KINDS[kinds[0]])
    else:
        allowed = (*_COMMON, *KINDS, *(key for keys in KINDS.values() for key in keys))
    for key in item:
        if key not in allowed:
            raise UserError(f"{where}: there is no key {key}; {suggestions(str(key), allowed)}")
    if len(kinds) != 1:
        given = " and ".join(kinds) or "none of them"
        raise UserError(f"{where}: it has {given}; give one of {', '.join(KINDS)}")
    named = _arms(item, kinds[0], arms, where)
    factor = _factor(item, {"lower": "by", "alike": "within"}.get(kinds[0]), kinds[0] == "alike", where)
    return Claim(str(item["says"]), kinds[0], named, factor, item.get("of"))


def _arms(item: Mapping[str, Any], kind: str, arms: list[str], where: str) -> tuple[str, ...]:
    first = item[kind]
    if kind in ("lower", "best") and not isinstance(first, (list, tuple)):
        others = item.get("than", []) if kind == "lower" else [arm for arm in arms if arm != str(first)]
        first = [first, *(others if isinstance(others, (list, tuple)) else [others])]
    named = tuple(str(arm) for arm in first) if isinstance(first, (list, tuple)) else (str(first),)
    for arm in named:
        if arm not in arms:
            raise UserError(f"{where}: the study has no arm {arm}; {suggestions(arm, arms)}")
    if len(named) < 2 or len(set(named)) < len(named):
        raise UserError(f"{where}: it compares {', '.join(named)}; give two or more different arms")
    return named


def _factor(item: Mapping[str, Any], key: str | None, needed: bool, where: str) -> float:
    factor = item.get(key, None if needed else 1) if key else 1
    if not is_number(factor) or factor < 1:
        raise UserError(f"{where}: {key}={factor}; set it to a number of 1 or more")
    return float(factor)


@dataclass(frozen=True)
class Verdict:
    """A verdict: ``answer`` is yes, no, partly or open ("best: ..." without a paper); ``words`` explain it.

    ``held`` of ``claims`` claims hold.
    """

    answer: str
    words: str
    held: int = 0
    claims: int = 0

    @property
    def short(self) -> str:
        """The answer; if some of the claims hold, with their number."""
        return f"{self.answer} ({self.held} of {self.claims})" if self.answer == "partly" else self.answer


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict: yes if all claims hold, no if none does, open if none can be checked, else partly."""
    held = sum(finding.holds is True for finding in findings)
    failed = sum(finding.holds is False for finding in findings)
    unknown = len(findings) - held - failed
    if not findings:
        return Verdict("open", "The study has no claim to check.")
    if held == failed == 0:
        which = "The one claim" if len(findings) == 1 else f"None of the {len(findings)} claims"
        return Verdict("open", f"{which} could {'not ' if len(findings) == 1 else ''}be checked yet.")
    answer = "yes" if held == len(findings) else "no" if held == 0 else "partly"
    words = " ".join([_count(held, failed, unknown, len(findings)), *_caution(findings)])
    return Verdict(answer, words, held, len(findings))


def _count(held: int, failed: int, unknown: int, total: int) -> str:
    if total == 1:
        return f"The one claim {'holds' if held else 'does not hold'}."
    if held == total:
        return f"All {total} claims hold."
    if failed == total:
        return f"None of the {total} claims holds."
    parts = [f"{held} of {total} claims {'holds' if held == 1 else 'hold'}"]
    parts += [f"{failed} {'does' if failed == 1 else 'do'} not"] if failed else []
    parts += [f"{unknown} {'is' if unknown == 1 else 'are'} open"] if unknown else []
    return ", ".join(parts) + "."


def _caution(findings: Sequence[Finding]) -> list[str]:
    """Return sentences on the number of seeds and on overlapping ranges of seeds."""
    seeds = seeds_of([s for finding in findings for s in finding.spreads.values()])
    sentences = [f"{seeds[:1].upper()}{seeds[1:]}."] if seeds else []
    pairs = list(dict.fromkeys(pair for finding in findings for pair in finding.overlapping))
    if pairs:
        shown = [f"{a} and {b}" for a, b in pairs[:3]] + ([f"{len(pairs) - 3} more pairs"] if len(pairs) > 3 else [])
        sentences.append(f"The ranges of seeds overlap for {', '.join(shown)}.")
    return sentences


def seeds_of(spreads: Sequence[Spread]) -> str:
    """Format the number of seeds: "one seed per arm", "3 seeds per arm", "1 to 3 seeds per arm"."""
    counts = sorted({value.seeds for value in spreads})
    if not counts:
        return ""
    if len(counts) == 1:
        return f"{in_words(counts[0], 'seed')} per arm"
    return f"{counts[0]} to {counts[-1]} seeds per arm"


def sentence(finding: Finding, paper: Mapping[str, float | int | None]) -> str:
    """Describe a finding: our numbers, the paper's, and how far the seeds support it."""
    ours = ", ".join(f"{arm} {value}" for arm, value in finding.spreads.items())
    parts = [f"ours ({finding.key.replace('_', ' ')}): {ours}{_ratio(finding)}" if ours else ""]
    if finding.claim.of is None:
        theirs = check(finding.claim, {arm: [value] for arm, value in paper.items()}, finding.key)
        numbers = ", ".join(f"{arm} {show_paper(value.mean)}" for arm, value in theirs.spreads.items())
        parts.append(f"the paper: {numbers}{_ratio(theirs)}" if numbers else "")
    if finding.claim.factor > 1:
        most = "at most" if finding.claim.kind == "alike" else "more than"
        parts.append(f"claimed: {most} {finding.claim.factor:g} times")
    if finding.missing:
        parts.append(f"no number for {', '.join(finding.missing)}")
    parts.append(seeds_of(list(finding.spreads.values())))
    if finding.overlapping:
        parts.append(f"the ranges of seeds overlap for {', '.join(f'{a} and {b}' for a, b in finding.overlapping)}")
    elif finding.holds and not finding.always:
        parts.append("it does not hold for every choice of seeds")
    return "; ".join(part for part in parts if part)


def _ratio(finding: Finding) -> str:
    """Format the ratio if the claim has a factor."""
    return "" if finding.ratio is None or finding.claim.factor == 1 else f", {show(finding.ratio)} times"


def compare_arms(spreads: Mapping[str, Spread], key: str) -> Verdict:
    """Return the verdict of a sweep without claims: the best arm, and whether its seeds overlap with the next one's."""
    ranked = sorted(spreads, key=lambda arm: spreads[arm].mean, reverse=higher_is_better(key))
    if len(ranked) < 2:
        only = f" Only {ranked[0]} has a number: {key} {spreads[ranked[0]]}." if ranked else ""
        return Verdict("open", f"There is nothing to compare yet.{only}")
    first, second = ranked[:2]
    a, b = spreads[first], spreads[second]
    words = f"{key} {a}; next is {second} with {b}."
    if a.seeds + b.seeds > 2:
        words += " Their ranges of seeds overlap." if a.overlaps(b) else " Their ranges of seeds do not overlap."
    seeds = seeds_of(list(spreads.values()))
    return Verdict(f"best: {first}", f"{words} {seeds[:1].upper()}{seeds[1:]}.")
