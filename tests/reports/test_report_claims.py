"""Claims of papers, checked on numbers: each kind true, false, open, and by how much seeds agree."""

import math
import statistics

import pytest

from pmf_lightning import UserError
from pmf_lightning.reports.claims import check, compare_arms, read_claims, sentence, verdict_of
from pmf_lightning.reports.formatting import show, show_time, spread

ARMS = ("a", "b", "c")


def claim(**parts):
    (read,) = read_claims([{"says": "so it is", **parts}], ARMS, "here")
    return read


def found(numbers, measure="fd", **parts):
    return check(claim(**parts), numbers, measure)


# Numbers over seeds


@pytest.mark.parametrize("values", [[3.0], [1, 2, 4.5], [0.1, 0.1, 0.1], [-1.0, 1e9]])
def test_mean_and_range_are_those_of_the_standard_library(values):
    got = spread(values)
    assert got.mean == pytest.approx(statistics.fmean(values), rel=1e-15)
    assert (got.low, got.high, got.seeds) == (min(values), max(values), len(values))


def test_what_is_not_a_number_is_ignored():
    assert spread([None, math.nan, math.inf, True, "3", 2.0]).mean == 2
    assert spread([None, math.nan]) is None
    assert spread([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((164.89, "165"), (9.56, "9.56"), (0.9944, "0.994"), (1, "1"), (1234.5, "1,234"), (999.7, "1,000"), (0, "0")),
        *((-3.456, "-3.46"), (0.000123, "0.000123"), (1.5e-9, "1.5e-09")),
    ],
)
def test_numbers_are_written_in_three_digits(value, text):
    assert show(value) == text


def test_durations_are_written_in_one_unit():
    assert [show_time(s) for s in (45, 89, 90, 3600 * 2, 86400 * 3)] == ["45 s", "89 s", "1.5 min", "2 h", "3 d"]


# Each kind of claim


@pytest.mark.parametrize(
    ("parts", "numbers", "holds"),
    [
        ({"lower": "a", "than": ["b", "c"]}, {"a": [1], "b": [2], "c": [3]}, True),
        ({"lower": "a", "than": ["b", "c"]}, {"a": [1], "b": [2], "c": [1]}, False),
        ({"lower": "a", "than": ["b"], "by": 2}, {"a": [1, 3], "b": [4.1, 4.1]}, True),  # 2 * 2 < 4.1
        ({"lower": "a", "than": ["b"], "by": 2}, {"a": [1, 3], "b": [4, 4]}, False),
        ({"lower": "a", "than": "b"}, {"a": [1], "b": [2]}, True),
        ({"ordered": ["a", "b", "c"]}, {"a": [1], "b": [2], "c": [3]}, True),
        ({"ordered": ["a", "b", "c"]}, {"a": [1], "b": [3], "c": [2]}, False),
        ({"best": "b"}, {"a": [2], "b": [1], "c": [3]}, True),
        ({"best": "b"}, {"a": [2], "b": [1], "c": [0.5]}, False),
        ({"alike": ["a", "b"], "within": 1.5}, {"a": [1], "b": [1.5]}, True),
        ({"alike": ["a", "b"], "within": 1.5}, {"a": [1.51], "b": [1]}, False),
        ({"alike": ["a", "b"], "within": 1.5}, {"a": [-1], "b": [1]}, False),
        ({"alike": ["a", "b"], "within": 1}, {"a": [0], "b": [0]}, True),
    ],
)
def test_claims_hold_or_not_by_the_means(parts, numbers, holds):
    assert found(numbers, **parts).holds is holds


@pytest.mark.parametrize(
    ("parts", "numbers", "holds"),
    [
        ({"lower": "a", "than": ["b", "c"]}, {"a": [1], "b": [2]}, None),
        ({"lower": "a", "than": ["b", "c"]}, {"a": [3], "b": [2]}, False),  # whatever c is
        ({"lower": "a", "than": ["b"]}, {"b": [2]}, None),
        ({"ordered": ["a", "b", "c"]}, {"a": [1], "c": [3]}, None),
        ({"ordered": ["a", "b", "c"]}, {"a": [4], "c": [3]}, False),
        ({"best": "a"}, {"a": [1], "b": [2]}, None),
        ({"alike": ["a", "b", "c"], "within": 2}, {"a": [1], "b": [3]}, False),
        ({"alike": ["a", "b"], "within": 2}, {}, None),
        ({"best": "a"}, {"a": [1], "b": [math.nan], "c": [None]}, None),
    ],
)
def test_a_claim_is_open_only_where_a_missing_arm_decides(parts, numbers, holds):
    got = found(numbers, **parts)
    assert got.holds is holds
    assert set(got.missing) == {arm for arm in got.claim.arms if spread(numbers.get(arm, [])) is None}


def test_more_is_better_for_accuracies_and_not_for_distances():
    numbers = {"a": [0.9], "b": [0.3]}
    assert found(numbers, lower="a", than=["b"], of="class_accuracy", by=2).holds is True
    assert found(numbers, lower="a", than=["b"], of="class_accuracy", by=3.1).holds is False
    assert found(numbers, "class_accuracy", lower="a", than=["b"]).holds is True
    assert found(numbers, "fd", lower="a", than=["b"]).holds is False
    assert found(numbers, "by_steps.4.class_accuracy", ordered=["a", "b"]).holds is True


def test_overlapping_ranges_of_seeds_are_named():
    separate = found({"a": [1, 2], "b": [3, 4]}, lower="a", than=["b"])
    assert (separate.overlapping, separate.always) == ((), True)
    meeting = found({"a": [1, 3.5], "b": [3, 4], "c": [9, 9]}, ordered=["a", "b", "c"])
    assert (meeting.holds, meeting.overlapping, meeting.always) == (True, (("a", "b"),), False)
    by_two = found({"a": [1, 2], "b": [3, 5]}, lower="a", than=["b"], by=2)  # 2 * 2 > 3
    assert (by_two.holds, by_two.overlapping, by_two.always) == (True, (), False)
    assert "it does not hold for every choice of seeds" in sentence(by_two, {})
    assert found({"a": [1], "b": [1]}, lower="a", than=["b"]).overlapping == ()  # single seeds have no range


def test_alike_arms_are_so_for_every_choice_of_seeds_or_not():
    surely = found({"a": [2, 2.5], "b": [3, 3]}, alike=["a", "b"], within=1.5)
    assert (surely.holds, surely.always) == (True, True)
    not_surely = found({"a": [1.9, 2.5], "b": [3, 3]}, alike=["a", "b"], within=1.5)  # 3 > 1.5 * 1.9
    assert (not_surely.holds, not_surely.always) == (True, False)
    assert "it does not hold for every choice of seeds" in sentence(not_surely, {})
    within_an_arm = found({"a": [1, 3], "b": [1.7, 1.7]}, alike=["a", "b"], within=2)  # a choice has one seed per arm
    assert (within_an_arm.holds, within_an_arm.always) == (True, True)


def test_ratios_are_what_the_claim_is_about():
    assert found({"a": [2], "b": [10], "c": [6]}, lower="a", than=["b", "c"]).ratio == 3
    assert found({"a": [2], "b": [10], "c": [6]}, alike=["a", "b", "c"], within=9).ratio == 5
    assert found({"a": [0.8], "b": [0.2]}, "class_accuracy", lower="a", than=["b"]).ratio == pytest.approx(4)
    assert found({"a": [2], "b": [10]}, ordered=["a", "b"]).ratio is None
    assert found({"b": [10], "c": [6]}, lower="a", than=["b", "c"]).ratio is None


# The verdict


def findings(*holds):
    numbers = {True: {"a": [1], "b": [2]}, False: {"a": [2], "b": [1]}, None: {"a": [1]}}
    return [found(numbers[hold], lower="a", than=["b"]) for hold in holds]


@pytest.mark.parametrize(
    ("holds", "answer", "words"),
    [
        ([True, True], "yes", "All 2 claims hold."),
        ([True], "yes", "The one claim holds."),
        ([False, False], "no", "None of the 2 claims holds."),
        ([False], "no", "The one claim does not hold."),
        ([True, False, False], "partly", "1 of 3 claims holds, 2 do not."),
        ([True, None], "partly", "1 of 2 claims holds, 1 is open."),
        ([False, None], "no", "0 of 2 claims hold, 1 does not, 1 is open."),
        ([None, None], "open", "None of the 2 claims could be checked yet."),
        ([], "open", "The study has no claim to check."),
    ],
)
def test_the_verdict_follows_from_the_claims_alone(holds, answer, words):
    verdict = verdict_of(findings(*holds))
    assert verdict.answer == answer
    assert verdict.words.startswith(words)
    assert verdict.short == (f"partly (1 of {len(holds)})" if answer == "partly" else answer)
    assert ("One seed per arm." in verdict.words) == (answer != "open")


def test_the_verdict_says_how_many_seeds_and_which_overlap():
    got = verdict_of([found({"a": [1, 3.5, 2], "b": [3, 4]}, lower="a", than=["b"])])
    assert got.answer == "yes"
    assert got.words == "The one claim holds. 2 to 3 seeds per arm. The ranges of seeds overlap for a and b."


def test_a_sentence_has_both_numbers():
    got = sentence(found({"a": [1, 2], "b": [30, 40]}, lower="a", than=["b"], by=2), {"a": 9.56, "b": 164.89})
    assert got == (
        "ours (fd): a 1.5 (1 to 2), b 35 (30 to 40), 23.3 times; the paper: a 9.56, b 164.89, 17.2 times; "
        "claimed: more than 2 times; 2 seeds per arm"
    )
    other = sentence(found({"a": [0.9]}, lower="a", than=["b"], of="class_accuracy"), {"a": 9.56, "b": 164.89})
    assert other == "ours (class accuracy): a 0.9; no number for b; one seed per arm"  # the paper's are of another kind


def test_without_claims_the_best_arm_is_named():
    spreads = {"a": spread([3, 5]), "b": spread([1, 3.5]), "c": spread([9, 9])}
    assert compare_arms(spreads, "fd").answer == "best: b"
    assert (
        "next is a with 4 (3 to 5). Their ranges of seeds overlap. 2 seeds per arm."
        in compare_arms(spreads, "fd").words
    )
    assert compare_arms(spreads, "class_accuracy").answer == "best: c"
    assert "do not overlap" in compare_arms(spreads, "class_accuracy").words
    assert compare_arms({"a": spread([1])}, "fd").answer == "open"
    assert compare_arms({}, "nothing").words == "There is nothing to compare yet."


# What the grammar refuses


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"says": "s", "lower": "a", "then": ["b"]},
            r"study: claim 1 \(s\): there is no key then; did you mean than\?",
        ),
        ({"says": "s", "lowest": "a"}, r"no key lowest; did you mean lower"),
        ({"says": "s", "lower": "a", "than": ["b"], "best": "a"}, "it has lower and best; give one of"),
        ({"says": "s"}, "it has none of them; give one of"),
        ({"lower": "a", "than": ["b"]}, "says is missing; give the claim"),
        ({"says": "s", "lower": "a", "than": ["d"]}, "the study has no arm d; known: a, b, c"),
        ({"says": "s", "lower": "a"}, "it compares a; give two or more different arms"),
        ({"says": "s", "alike": ["a", "a"], "within": 2}, "it compares a, a; give two or more"),
        ({"says": "s", "alike": ["a", "b"]}, "within=None; set it to a number of 1 or more"),
        ({"says": "s", "lower": "a", "than": ["b"], "by": 0.5}, "by=0.5; set it to a number of 1 or more"),
        ({"says": "s", "ordered": ["a", "b"], "by": 2}, "there is no key by"),
        ("a < b", "'a < b' is not a mapping; give says and one of lower, ordered, best, alike"),
    ],
)
def test_what_is_outside_the_grammar_is_refused(item, message):
    with pytest.raises(UserError, match=message):
        read_claims([item], ARMS, "study")
