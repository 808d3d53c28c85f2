"""metrics=battery: what it logs and sums up, marks, the warning of a fooled loss, and bad input."""

import pytest

from pmf_lightning import UserError, build, compose
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.evaluation.battery.build import JudgeSetup, trained_members
from pmf_lightning.evaluation.battery.report import save_bars, score_table
from pmf_lightning.evaluation.battery.scores import BatteryScores, EncoderScores, JudgeProtocol
from pmf_lightning.evaluation.battery.watch import DisagreementWatch
from pmf_lightning.pipeline.parts import make_source
from pmf_lightning.sweeps.jobs import measured
from pmf_lightning.training.callbacks.battery import BatteryEvaluation
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.training.prepare import make_evaluator

DIGITS = Digits("digits", 32, 1, 10, 360)
MEMBERS = {"seen": {"size": 1}, "unseen": {"size": 2}, "twin": {"size": 1}}


class AllTrained(Digits):
    """Digits of which none is held out."""

    has_held_out = False


def scores(seen=2.0, unseen=4.0):
    encoders = {"seen": EncoderScores(seen, 1.0, True, 3.0, 2.0, 0.1), "unseen": EncoderScores(unseen, 1.0, False)}
    return BatteryScores(encoders, 360, JudgeProtocol(), 360, 0.75, 0.99)


def callback(found=None):
    setup = JudgeSetup({"members": {"seen": {}, "unseen": {}}}, DIGITS, JudgeProtocol(), 50, None, ["seen"])
    made = BatteryEvaluation(
        setup,
        360,
        every_steps=1,
        sampling={},
        extra_steps=(),
        averages=EMA([1.0], None, 8),
        progress=ThroughputBar(8, 1),
    )
    made.latest = found
    return made


def test_logs_summaries_and_sweeps_hold_the_held_out_mean():
    made, found = callback(), scores()
    assert made.name == "fdr1_held_out_360_float_fp32"
    logged = made.metrics(found)
    assert logged[made.name] == 4.0
    assert logged["fdr2_360_float_fp32"] == 3.0
    assert logged["fdr_trained_seen"] == 2.0
    assert logged["fdr_held_out_unseen"] == 4.0
    assert logged["swr_trained_seen"] == 1.5
    summary = made.summary(found)
    assert (summary["fdr"], summary["fdr_trained"], summary["fdr_held_out"], summary["class_accuracy"]) == (
        4,
        2,
        4,
        0.75,
    )
    assert measured(compose([]), summary) == 4.0, "the objective of sweeps"
    assert made.summary(None)["fdr"] is None
    assert made.display_names().keys() <= summary.keys()
    assert made.short_summary(found) == {"fdr": 4.0, "class_accuracy": 0.75}


def test_the_page_shows_marks_spread_and_accuracy(tmp_path):
    table = score_table(scores(), "title")
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["seen", "unseen", "mean of 2", "mean of 1", "mean of 1"]
    assert cells[1] == ["trained", "held out", "", "trained", "held out"]
    assert cells[4][:2] == ["1 +- 0.10", "1"]
    assert set(cells[7]) == {"0.75"}
    assert save_bars(scores(unseen=90.0), tmp_path / "bars.png").stat().st_size > 1000


def test_a_fooled_loss_is_warned_of_after_three_measurements_in_a_row_also_across_a_resume():
    trained, held_out = [9, 8, 7, 6, 5, 5, 4], [9, 10, 11, 12, 13, 12, 13]
    watch, said = DisagreementWatch(), []
    for step, pair in enumerate(zip(trained, held_out, strict=True)):
        said.append(watch.update(step, *map(float, pair)))
        assert watch.update(step, 0.0, 99.0) is None, "a step counts once"
        resumed = DisagreementWatch()
        resumed.load_state_dict(watch.state_dict())
        watch = resumed
    assert [text is not None for text in said] == [False, False, False, True, False, False, False]
    assert "step 3: the encoders of the loss improve (mean ratio 6), the held-out ones get worse (12), 3" in said[3]
    assert DisagreementWatch().update(1, 2.0, None) is None
    made = callback()
    made.watch.update(7, 1.0, 2.0)
    made.warnings = 2
    other = callback()
    other.load_state_dict(made.state_dict())
    assert (other.watch.state_dict(), other.warnings) == (made.watch.state_dict(), 2)


def test_trained_members_are_those_of_the_loss_by_name_or_settings():
    stored = {"posttrain": {"encoders": ["seen"]}, "battery": {"members": {"seen": {"size": 1}}}}
    assert trained_members({"members": MEMBERS}, stored) == ["seen", "twin"]
    assert trained_members({"members": MEMBERS}, {"posttrain": None}) == []
    assert trained_members({"members": MEMBERS}, None) == []


def test_metrics_battery_is_composed_and_checked():
    cfg = compose(["metrics=battery", "posttrain=fd_loss", "metrics.n=200"])
    settings, setup = make_evaluator(cfg, make_source(cfg), build(cfg, empty=True))
    assert set(setup.trained) == set(cfg.posttrain.encoders)
    assert set(setup.judged) == set(cfg.battery.members) - set(setup.trained)
    assert (settings.n, settings.protocol) == (200, JudgeProtocol())
    cfg = compose(["metrics=battery"])
    with pytest.raises(
        UserError, match="metrics=battery: no encoders are chosen; set battery=, such as battery=digits"
    ):
        make_evaluator(cfg, make_source(cfg), build(cfg, empty=True))
    none = AllTrained("digits", 32, 1, 10, 0)
    for group, message in (
        ({"members": MEMBERS, "floors": {"nobody": 1.0}}, "battery.floors.nobody: the battery has no such encoder"),
        ({"members": MEMBERS, "floors": {"seen": 1.0}}, "data=digits holds out no images, which distances are divided"),
    ):
        with pytest.raises(UserError, match=message):
            JudgeSetup(group, none, JudgeProtocol(), 5, None).check()
    JudgeSetup({"members": MEMBERS}, DIGITS, JudgeProtocol(), 5, None).check()
