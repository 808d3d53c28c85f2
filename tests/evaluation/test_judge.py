"""The judge of a battery: ratios to real images, one pass, marks and names; the same on two processes."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from features_of_tests import noise_levels, numpy_frechet
from omegaconf import OmegaConf
from ranks import together
from tiny_battery import real_of, tiny_battery

from pmf_lightning import compose
from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.data.transforms import to_float
from pmf_lightning.evaluate import evaluate
from pmf_lightning.evaluation.battery import build as battery_build
from pmf_lightning.evaluation.battery.build import JudgeSetup
from pmf_lightning.evaluation.battery.distances import SlicedReference, directions_of, spread
from pmf_lightning.evaluation.battery.judge import Judge
from pmf_lightning.evaluation.battery.scores import BatteryScores, EncoderScores, JudgeProtocol
from pmf_lightning.evaluation.moments import Gaussian
from pmf_lightning.make_stats import make_stats
from pmf_lightning.objectives.discrepancies.populations import batch_statistics
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.objectives.discrepancies.sliced import sliced_wasserstein
from pmf_lightning.pipeline.parts import make_source
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate

TRAIN, VALID, OTHER = (noise_levels(name, count) for name, count in (("train", 300), ("valid", 120), ("other", 120)))
HELD_OUT = ArrayDataset(VALID, torch.arange(120) % 4)


def judge_of(protocol=None, train=None, held_out=HELD_OUT, batch_size=50, battery=None, **others):
    battery = battery or tiny_battery()
    protocol = protocol or JudgeProtocol(directions=64)
    return Judge(battery, train or real_of(battery, TRAIN), held_out, protocol, batch_size, **others)


def of(images):
    return lambda labels, first: images[first : first + len(labels)]


def test_real_images_score_one_and_within_their_spread_so_do_other_real_images():
    judge = judge_of(trained=["mixed"], spread_draws=8)
    same, other, darker = (judge(of(x), 120, None) for x in (VALID, OTHER, VALID // 2))
    for name in ("pixels", "mixed", "other"):
        assert same.encoders[name].fdr == pytest.approx(1, rel=1e-4)
        assert same.encoders[name].swr == pytest.approx(1, rel=1e-6), "the order of the rows does not matter"
        real = other.encoders[name]
        assert abs(math.log(real.fdr)) < 2 * real.spread
        assert darker.encoders[name].fdr > 5
        assert darker.encoders[name].swr > 2
    assert [one.mark for one in same.encoders.values()] == ["held out", "trained", "held out"]
    assert same.judged == pytest.approx((same.encoders["pixels"].fdr + same.encoders["other"].fdr) / 2)


def test_distances_are_those_of_the_formulas():
    judge = judge_of()
    scores = judge(of(OTHER), 120, None)
    features = {kind: judge.encode(images) for kind, images in (("t", TRAIN), ("v", VALID), ("o", OTHER))}
    for name, found in scores.encoders.items():
        t, v, o = (features[kind][name].double().numpy() for kind in "tvo")
        assert found.fd == pytest.approx(numpy_frechet(o, t), rel=1e-5)
        assert found.fd_floor == pytest.approx(numpy_frechet(v, t), rel=1e-5)
        width = t.shape[1]
        train = SlicedReference(features["t"][name], 64, 10**6)
        assert found.sw == train.distance(features["o"][name], 120)
        assert directions_of(width, 64) is directions_of(width, 64), "the same for every set and encoder"
    assert scores.sliced_n == 120
    rows = torch.arange(6.0).view(3, 2)
    unit = SlicedReference(rows, 8, 2)
    assert unit.size(5, 7) == 2
    assert SlicedReference(rows, 8, 9).distance(rows + 1, 3) == pytest.approx(
        float(sliced_wasserstein(rows + 1, rows, directions_of(2, 8))), rel=1e-6
    )


def test_floors_are_those_of_as_many_validation_images_chosen_by_chance():
    judge = judge_of()
    scores = judge(of(OTHER), 60, None)
    train, rows = judge.encode(TRAIN), judge.encode(VALID)
    chosen = rng.permutation(0, "validation", count=120)[:60]
    assert scores.sliced_n == 60
    for name, found in scores.encoders.items():
        some, real = rows[name][chosen].double().numpy(), train[name].double().numpy()
        assert found.fd_floor == pytest.approx(numpy_frechet(some, real), rel=1e-5)
        reference = SlicedReference(train[name], 64, 10**6)
        assert found.sw_floor == reference.distance(rows[name], 60, random=True) != reference.distance(rows[name], 60)


def test_half_precision_changes_networks_alone():
    half, full = (judge_of(JudgeProtocol(precision=name, directions=0)) for name in ("bfloat16", "float32"))
    halves, fulls = (judge(of(OTHER), 120, None).encoders for judge in (half, full))
    for name in ("mixed", "other"):
        assert 1e-5 < abs(halves[name].fd / fulls[name].fd - 1) < 0.1
    assert halves["pixels"].fd == fulls["pixels"].fd, "averages of pixels are no product of matrices"


def test_the_classifier_of_a_battery_is_that_of_small_metrics(monkeypatch):
    """Also where the members have other seeds: the accuracies of a judge and of metrics=small are of one network."""
    asked = []
    monkeypatch.setattr(battery_build, "cached_classifier", lambda source, settings, folder: asked.append(settings))
    cfg = compose(["data=digits", "battery=digits"], "make_stats")
    group = OmegaConf.to_container(cfg.battery, resolve=True)
    JudgeSetup(group, make_source(cfg), JudgeProtocol(), 50, None)._classifier()
    own = group["members"]["classifier0"]["settings"]
    assert own["seed"] == 1
    assert asked == [replace(instantiate(own), seed=0)]


def test_all_encoders_see_the_same_images_generated_once_and_pixels_follow_the_protocol():
    asked, saved = [], []

    def generate(labels, first):
        asked.append((first, labels.tolist()))
        return to_float(OTHER[first : first + len(labels)]) * 1.3 + 0.001

    battery = tiny_battery()
    judge = judge_of(battery=battery, batch_size=40, classify=lambda levels: torch.eye(4)[: len(levels)].repeat(10, 1))
    floats = judge(generate, 80, 4, lambda images, labels, first: saved.append((images.dtype, first)))
    assert asked == [(0, [0, 1, 2, 3] * 10), (40, [0, 1, 2, 3] * 10)]
    assert saved == [(torch.uint8, 0), (torch.uint8, 40)]
    assert {member.calls for member in battery.members.values()} == {1 + 3 + 2}, "train, three parts of validation, two"
    assert floats.class_accuracy == floats.real_accuracy == 1
    levels = judge_of(JudgeProtocol("uint8", directions=0))(generate, 80, 4)
    assert levels.encoders["pixels"].fd == pytest.approx(floats.encoders["pixels"].fd, rel=0.02)
    assert levels.encoders["pixels"].fd != floats.encoders["pixels"].fd
    assert (levels.sliced_n, levels.mean("swr"), levels.class_accuracy) == (None, None, None)
    clamped = judge_of()(lambda labels, first: to_float(OTHER)[first : first + len(labels)] * 9, 80, 4)
    assert clamped.encoders["pixels"].fd < 10, "clamped to [-1, 1]"


def test_names_hold_the_protocol_and_means_the_marks():
    ones = {f"e{number}": EncoderScores(2.0 + number, 1.0, number < 2, 3.0, 2.0) for number in range(5)}
    scores = BatteryScores(ones, 50_000, JudgeProtocol("float", "bfloat16"), 16_384, 0.5)
    assert scores.named() == {
        "fdr5_50k_float_bf16": 4.0,
        "fdr2_trained_50k_float_bf16": 2.5,
        "fdr3_held_out_50k_float_bf16": 5.0,
        "sw_r5_16384_float_bf16": 1.5,
        "sw_r2_trained_16384_float_bf16": 1.5,
        "sw_r3_held_out_16384_float_bf16": 1.5,
        "class_accuracy": 0.5,
    }
    assert scores.judged == 5.0
    all_trained = BatteryScores({"e0": EncoderScores(2.0, 1.0, True)}, 360, JudgeProtocol())
    assert all_trained.named() == {
        "fdr1_360_float_fp32": 2.0,
    }
    assert all_trained.judged == 2.0


def test_published_floors_need_no_validation_images():
    floors = {"pixels": 0.5, "mixed": 2.0, "other": 1.0}
    scores = judge_of(held_out=None, floors=floors)(of(OTHER), 60, 4)
    assert {name: one.fd_floor for name, one in scores.encoders.items()} == floors
    assert scores.encoders["pixels"].fdr == scores.encoders["pixels"].fd / 0.5
    assert scores.named() == {"fdr3_published_60_float_fp32": scores.judged}
    assert scores.flags == ("published-floor",)
    assert scores.mean("swr") is None
    assert set(judge_of()(of(OTHER), 110, 4).flags) == {"missing-encoders", "unbalanced-labels"}
    assert "other-count" in judge_of(held_out=ArrayDataset(VALID[:50], torch.zeros(50).long()))(of(OTHER), 60, 4).flags
    assert "few-samples" in judge_of()(of(OTHER), 5, None).flags


def test_the_floors_of_fd_loss_are_a_battery_and_part_of_the_name():
    groups = (compose([f"battery={name}"]).battery for name in ("fdr6_paper", "fdr6"))
    paper, measured = (OmegaConf.to_container(group, resolve=True) for group in groups)
    assert paper["floors"].keys() == paper["members"].keys()
    rounded = {"inception": 1.68, "convnext": 56.87, "dinov2": 14.19, "mae": 0.04, "siglip2": 0.60, "clip": 5.60}
    assert paper["floors"] == pytest.approx(rounded, abs=0.006)
    assert measured == paper | {"floors": None}
    rules = JudgeProtocol(precision="bfloat16")
    names = [JudgeSetup(one, make_source(compose([])), rules, 50, None).name(50_000) for one in (paper, measured)]
    assert names == ["fdr6_published_50k_float_bf16", "fdr6_50k_float_bf16"]


def test_bad_input_is_one_line():
    with pytest.raises(UserError, match=r"battery.floors: no distance of validation images for mixed, other, and"):
        judge_of(held_out=None, floors={"pixels": 1.0})
    train = real_of(tiny_battery(), TRAIN)
    train["mixed"] = RealFeatures("mixed", 9, mu=torch.zeros(3).double(), sigma=torch.eye(3).double())
    with pytest.raises(UserError, match=r"reference: moments of 3 features for mixed, the encoder makes 6; make it"):
        judge_of(train=train)(of(OTHER), 20, None)
    with pytest.raises(UserError, match="n=1: a distance needs"):
        judge_of()(of(OTHER), 1, None)
    with pytest.raises(UserError, match="40 of 7680 pixels are not finite"):
        judge_of()(
            lambda labels, first: torch.where(torch.arange(192).view(3, 8, 8) == 7, torch.nan, 0.0).expand(
                len(labels), 3, 8, 8
            ),
            40,
            None,
        )
    for wrong, message in (
        ({"pixels": "png"}, "judge.pixels=png: use float or uint8"),
        ({"precision": "half"}, "judge.precision=half: use float32 or bfloat16"),
        ({"directions": -1}, "judge.directions=-1"),
    ):
        with pytest.raises(UserError, match=message):
            JudgeProtocol(**wrong)
    with pytest.raises(ValueError, match="spread of 3 images"):
        spread(Gaussian(torch.zeros(2).double(), torch.eye(2).double()), torch.zeros(3, 2), 4)


@pytest.mark.parametrize(
    ("count", "draws", "words"),
    [
        (
            3,
            8,
            r"judge.spread_draws=8: data=digits holds out 3 images, and their spread needs 4; hold .*spread_draws=0",
        ),
        (1, 0, "battery=: data=digits holds out one image, and its distance needs two; hold out more"),
    ],
)
def test_too_few_validation_images_are_refused_before_networks_are_built(count, draws, words, tmp_path):
    source = make_source(compose(["data=digits", f"data.held_out_images={count}"]))
    setup = JudgeSetup({"members": {"own": None}}, source, JudgeProtocol(), 50, str(tmp_path), spread_draws=draws)
    with pytest.raises(UserError, match=words):
        setup.open(torch.device("cpu"))


def test_the_spread_is_that_of_real_images():
    """In many dimensions that are alike, distances of real sets vary less, and ours is the variation of fresh sets."""
    fresh = [rng.normal("spread", number, count=200 * 20).view(-1, 20) for number in range(30)]
    train = Gaussian(torch.zeros(20).double(), torch.eye(20).double())
    distances = torch.tensor([train.distance(*batch_statistics(rows)) for rows in fresh]).log()
    assert spread(train, torch.cat(fresh[:2]), 20) == pytest.approx(float(distances.std()) * 2**0.5, rel=0.5)
    wide = Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    assert spread(wide, fresh[0][:, :2], 20) > 2 * spread(train, fresh[0], 20)


def judged_by_a_rank():
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    judge = judge_of(batch_size=17, spread_draws=2, classify=lambda levels: torch.eye(4)[levels[:, 0, 0, 0].long() % 4])
    found = judge(of(OTHER), 100, 4)
    return found.named() | found.by_encoder()


@pytest.mark.slow
def test_two_processes_score_as_one():
    first, second = together(2, judged_by_a_rank)
    assert first == second
    assert first == pytest.approx(judged_by_a_rank(), rel=1e-6), "sums of features in another order"


def test_the_command_judges_real_images_as_real(tmp_path):
    """The held-out images themselves score exactly 1, in every encoder; a folder of make_stats is a reference too."""
    members = {f"pixels{side}": {"_target_": "tiny_battery.Small", "side": side} for side in (2, 3)}
    cfg = compose(
        ["data=digits", "battery=digits", f"cache_dir={tmp_path}", f"out={tmp_path}/stats", "bank=400"], "make_stats"
    )
    cfg.battery.members = members
    assert make_stats(cfg)["features"] == 400
    held_out = make_source(cfg).held_out()
    np.savez(tmp_path / "held_out.npz", arr_0=held_out.batch(range(360))[0].permute(0, 2, 3, 1).numpy())
    cfg = compose(
        [
            "data=digits",
            "battery=digits",
            f"cache_dir={tmp_path}",
            f"out={tmp_path}/out",
            f"images={tmp_path}/held_out.npz",
            "force=true",
        ],
        "evaluate",
    )
    for reference in ("data", f"{tmp_path}/stats"):
        cfg.battery.members, cfg.battery.reference = members, reference
        report = evaluate(cfg)
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(report))
        assert report["metric"] == "fdr2_360_float_fp32"
        for one in report["encoders"].values():
            assert one["fdr"] == pytest.approx(1, rel=1e-6)
            assert one["swr"] == pytest.approx(1, rel=1e-4)
            assert 0 < one["spread"] < 1
        assert report["sliced_n"] == 360
        assert (tmp_path / "out" / "ratios.png").is_file()
    with pytest.raises(
        UserError, match="data=digits: its images have 1 channels and 16 pixels, those to judge 1 and 32"
    ):
        evaluate(
            compose(
                [
                    "data=digits",
                    "data.resolution=16",
                    "battery=digits",
                    f"images={tmp_path}/held_out.npz",
                    f"out={tmp_path}/refused",
                ],
                "evaluate",
            )
        )
    with pytest.raises(UserError, match="nystrom=4: these are of the encoders of a battery; set battery="):
        make_stats(compose(["data=digits", "nystrom=4", "out=stats.npz"], "make_stats"))
    with pytest.raises(UserError, match=r"bandwidth_scale=0.5: it is of a Nystrom reference; set nystrom=4096"):
        make_stats(compose(["data=digits", "battery=digits", "bandwidth_scale=0.5", "out=stats"], "make_stats"))
