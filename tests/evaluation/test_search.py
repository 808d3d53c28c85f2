"""Guidance search: the points it tries, that each is measured once and rightly, and what it leaves behind."""

import csv
import json
import shlex
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import together
from shrunk import RUN

from pmf_lightning import UserError, compose, load_checkpoint, search_guidance
from pmf_lightning.commands import search_guidance as work
from pmf_lightning.config import search_path
from pmf_lightning.config.command_line import readable
from pmf_lightning.config.compose import choices
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.evaluation.build import open_evaluator
from pmf_lightning.evaluation.guidance_search.maps import save_lines, save_maps
from pmf_lightning.evaluation.guidance_search.measure import PointEvaluator
from pmf_lightning.evaluation.guidance_search.records import Record, Records
from pmf_lightning.evaluation.guidance_search.report import edges
from pmf_lightning.evaluation.guidance_search.search import search_by
from pmf_lightning.evaluation.guidance_search.space import (
    SamplingSetting,
    SearchSpace,
    default_point,
    make_axes,
    recipe,
)
from pmf_lightning.objectives.base import ObjectiveBase
from pmf_lightning.pipeline.checkpoints import load_with_averages, read_checkpoint
from pmf_lightning.pipeline.parts import make_objective, make_part
from pmf_lightning.sampling.generate import numbered_images
from pmf_lightning.train import train

AXES = SearchSpace(("1k", "2k"), (1, 2, 3), ((0, 1), (0.1, 0.7)), (1, 2), ("average",))
START = SamplingSetting("1k", 1, (0, 1), 1, "average")


# Points and strategies


def test_a_grid_is_every_combination_once():
    grid = AXES.grid()
    assert len(grid) == len(set(grid)) == len(AXES) == 2 * 3 * 2 * 2
    assert [point.ema for point in grid] == ["1k"] * 12 + ["2k"] * 12  # weights are swapped once
    assert {(p.omega, p.interval, p.steps) for p in grid} == {
        (omega, interval, steps) for omega in (1, 2, 3) for interval in ((0, 1), (0.1, 0.7)) for steps in (1, 2)
    }
    options = {"steps": 2, "sampler": "average", "omega": 3, "t_min": 0.1, "t_max": 0.7}
    assert SamplingSetting("2k", 3, (0.1, 0.7), 2, "average").options == options
    assert AXES.nearest(SamplingSetting("9k", 2.4, (0.2, 0.6), 50, "heun")) == SamplingSetting(
        "1k", 2, (0.1, 0.7), 2, "average"
    )


def bowl(point):
    """A number with one lowest place, (2k, 2, (0.1, 0.7), 2); its axes have nothing to do with each other."""
    return abs(point.omega - 2) + (point.ema == "1k") + point.interval[0] * -3 + (point.steps == 1) * 0.5


@pytest.mark.parametrize("strategy", ["grid", "coordinate"])
def test_both_strategies_find_the_bottom_of_a_bowl(strategy):
    asked = Counter()

    def measure(point):
        asked[point] += 1
        return bowl(point)

    best = search_by(strategy, AXES, START, measure)
    assert best == min(AXES.grid(), key=bowl) == SamplingSetting("2k", 2, (0.1, 0.7), 2, "average")
    assert set(asked) <= set(AXES.grid())
    assert len(asked) == 24 if strategy == "grid" else len(asked) <= 12


@pytest.mark.parametrize("strategy", ["grid", "coordinate"])
def test_points_without_a_number_are_no_winners(strategy):
    assert search_by(strategy, AXES, START, lambda point: None) is None
    only = SamplingSetting("1k", 3, (0, 1), 1, "average")
    assert search_by(strategy, AXES, START, lambda point: 5.0 if point == only else None) == only
    assert search_by(strategy, AXES, START, lambda point: 1.0) == START  # of equals the first, and it ends


def record(point, fid=1.0, **conditions):
    scores = {} if fid is None else {"fid": fid, "inception_score": None, "flags": []}
    return Record(point, {"n": 10, "seed": 0, **conditions}, scores, 1, 0.5, None if fid else "images are not finite")


def test_records_are_found_again_under_the_same_conditions_only(tmp_path):
    kept = Records(tmp_path / "points")
    kept.add(record(START, 3.25))
    kept.add(record(START, 4.0, seed=1))
    (tmp_path / "points" / "spoilt.json").write_text('{"point": {"ema"')
    (tmp_path / "points" / "other.json").write_text('{"a": 1}')
    assert len(list((tmp_path / "points").iterdir())) == 4
    again = Records(tmp_path / "points")
    assert again.find(START, {"seed": 0, "n": 10}) == record(START, 3.25)
    assert again.find(SamplingSetting("1k", 1.0, (0.0, 1.0), 1, "average"), {"seed": 0, "n": 10}).fid == 3.25
    assert again.find(START, {"seed": 1, "n": 10}).fid == 4.0
    assert again.find(START, {"seed": 0, "n": 11}) is None
    assert again.find(SamplingSetting("2k", 1, (0, 1), 1, "average"), {"seed": 0, "n": 10}) is None
    Records(tmp_path / "points").add(record(AXES.grid()[3], 1.0), write=False)
    assert len(list((tmp_path / "points").iterdir())) == 4


def test_edges_say_where_more_may_be_found():
    assert edges(SamplingSetting("1k", 3, (0, 1), 1, "average"), AXES) == [
        "the best omega, 3, is the largest that was tried: try larger ones"
    ]
    assert edges(SamplingSetting("1k", 1, (0, 1), 1, "average"), AXES) == []  # below 1 there is nothing
    assert edges(SamplingSetting("1k", 2, (0, 1), 2, "average"), AXES) == [
        "the best steps, 2, is the largest that was tried: try larger ones"
    ]
    beyond = SearchSpace(("1k",), (2, 3), ((0, 1),), (1,), ("average",))
    assert "smallest" in edges(SamplingSetting("1k", 2, (0, 1), 1, "average"), beyond)[0]


# What is tried where nothing is said

GENERATORS = [model for model in choices("model") if not model.startswith("mae_")]


@pytest.mark.parametrize("model", GENERATORS)
def test_the_published_best_is_a_point_of_the_grid(model):
    cfg = compose([f"model={model}"])
    tried, judged = cfg.search, cfg.sampling
    assert judged.omega in tried.omega
    assert [judged.t_min, judged.t_max] in tried.intervals
    assert judged.steps in tried.steps
    assert judged.sampler in tried.sampler
    assert tried.ema is None
    assert min(tried.omega) >= 1


def test_every_number_of_the_facts_is_tried():
    """pMF's, iMF's and JiT's released values, and drifting's sweep; t = 1 is noise."""
    grids = {kind: compose([f"model={kind}"]).search for kind in ("pmf_b16", "imf_b2", "jit_b16", "drifting_b16")}
    for omega, interval in [
        (8.5, [0.1, 0.7]),
        (6.5, [0.1, 0.7]),
        (7, [0.2, 0.7]),
        (7.5, [0.2, 0.6]),
        (5.5, [0.1, 0.6]),
    ]:
        assert omega in grids["pmf_b16"].omega
        assert interval in grids["pmf_b16"].intervals
    for omega, interval in [(8, [0.4, 0.65]), (10.5, [0.4, 0.6]), (8, [0.42, 0.62]), (7.5, [0.4, 0.65])]:
        assert omega in grids["imf_b2"].omega
        assert interval in grids["imf_b2"].intervals
    assert {2.2, 2.4, 3.0} <= set(grids["jit_b16"].omega)
    assert (min(grids["jit_b16"].omega), max(grids["jit_b16"].omega)) == (1, 4)
    assert grids["jit_b16"].intervals == [[0, 0.9]]
    assert grids["drifting_b16"].omega == [1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5]
    assert (grids["drifting_b16"].steps, grids["drifting_b16"].intervals) == ([1], [[0, 1]])


@pytest.mark.parametrize(
    ("model", "preset"),
    [("pmf_b16", "pmf_b16"), ("imf_xl2", "imf_b2"), ("jit_tiny", "jit_b16"), ("drifting_tiny", "drifting_b16")],
)
def test_checkpoints_of_before_get_the_recipe(model, preset):
    config = compose([f"model={model}"])
    del config.search
    own = make_objective(config).search_preset
    assert recipe(config, own) == compose([f"model={model}"]).search  # by the name of the preset
    config.name = "my_own"
    assert recipe(config, own) == compose([f"model={preset}"]).search  # by the objective
    assert recipe(config, ObjectiveBase.search_preset) == {}


# The whole command, on a run of seconds

CLASSIFIER = ["extractor=classifier", "extractor.settings.steps=3", "reference=data"]
FEW = ["omega=[1,3]", "intervals=[[0,1],[0.1,0.7]]", "n=30", "n_final=60", "batch_size=25", "shown=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose([*RUN, "steps=6", "sample_grid.enabled=false", "optimizer.lr=3e-2", f"run_dir={folder}"]))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def search(trained, cache, out, *overrides):
    arguments = [f"ckpt={trained}", *CLASSIFIER, *FEW, f"cache_dir={cache}", f"out={out}", *overrides]
    return search_guidance.search(compose(arguments, "search_guidance"))


@pytest.fixture(scope="module")
def found(trained, cache, tmp_path_factory):
    """The folder and the result of a search of two averages, two scales and two intervals."""
    out = tmp_path_factory.mktemp("search") / "out"
    return out, search(trained, cache, out)


@pytest.mark.slow
def test_what_a_search_writes(found, capsys):
    out, result = found
    assert {path.name for path in out.iterdir()} == {
        *("points", "results.csv", "heat_map.png", "curves.png", "best.json", "samples.png")
    }
    assert len(list((out / "points").glob("*.json"))) == 8 + 2 - (result["best"].point.omega == 1)
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert Counter(row["ema"] for row in rows[:8]) == {"1k": 4, "2k": 4}
    lowest = min(rows[:8], key=lambda row: float(row["fid"]))
    best = json.loads((out / "best.json").read_text())
    assert best["best"]["scores"]["fid"] == float(lowest["fid"]) == result["best"].fid
    assert best["final"]["point"] == best["best"]["point"]
    assert (best["final"]["conditions"]["n"], best["unguided"]["conditions"]["n"]) == (60, 60)
    assert best["unguided"]["point"] == best["best"]["point"] | {"omega": 1}
    assert best["final"]["scores"]["kid"] is not None
    work.show_result(result)
    printed = capsys.readouterr().out
    assert "fd30_classifier_jit" in printed
    assert "without guidance" in printed
    assert "note: not-full-count" in printed
    assert f"{result['final'].fid:.4g}" in printed
    assert Image.open(out / "samples.png").size[0] > 10 * 64


@pytest.mark.slow
def test_a_point_is_what_evaluating_it_gives(found, trained, cache):
    """By hand: the checkpoint's average, the point's options, noise 0, 1, ... of the seed."""
    cfg = compose(["data=digits", *CLASSIFIER], "evaluate")
    source = Digits("digits", 32, 1, 10, 360)
    sizes = {"resolution": 32, "channels": 1, "classes": 10, "batch_size": 25, "device": "cpu"}
    parts = (make_part(cfg, "protocol"), make_part(cfg, "extractor"), "data")
    judge = open_evaluator(*parts, source=source, cache_dir=str(cache), **sizes)
    for tried in found[1]["tried"]:
        if (tried.point.omega, tried.point.interval) == (3, (0.1, 0.7)):
            module, point = load_checkpoint(trained, tried.point.ema), tried.point
            options = {"omega": 3, "t_min": 0.1, "t_max": 0.7, "steps": 1, "sampler": "average"}
            scores = judge(lambda y, first, m=module, o=options: numbered_images(m, y, 0, first, **o), 30, 10)
            assert tried.fid == pytest.approx(scores.fid, rel=1e-6), point
            assert tried.scores["inception_score"] == pytest.approx(scores.inception_score, rel=1e-6)
    assert len({tried.fid for tried in found[1]["tried"]}) >= 4  # averages and scales do matter


@pytest.mark.slow
def test_a_repeated_search_measures_what_is_missing_alone(found, trained, cache, tmp_path, monkeypatch):
    out, result = shutil.copytree(found[0], tmp_path / "out"), found[1]
    measured, generator = [], PointEvaluator.generator
    monkeypatch.setattr(
        PointEvaluator, "generator", lambda self, point: measured.append(point) or generator(self, point)
    )
    again = search(trained, cache, out)
    assert measured == [again["best"].point]  # for the grid of samples
    assert again["tried"] == result["tried"]
    measured.clear()
    lost = next((out / "points").glob("2k_omega3_0.1-0.7_1xaverage_n30_*.json"))
    lost.unlink()
    again = search(trained, cache, out)
    point = SamplingSetting("2k", 3, (0.1, 0.7), 1, "average")
    assert measured == [point, again["best"].point]
    assert [r.fid for r in again["tried"]] == [r.fid for r in result["tried"]]
    assert lost.is_file()
    measured.clear()
    search(trained, cache, out, "seed=1", "omega=[3]", "ema=[2k]", "n_final=null")
    assert len(measured) == 3  # another seed is another number


@pytest.mark.slow
def test_scores_beside_other_real_features_are_other_scores(found, trained, cache, tmp_path):
    (kept,) = (cache / "statistics").glob("*.npz")
    with np.load(kept) as arrays:
        parts = {name: arrays[name] for name in arrays.files}
    np.savez(tmp_path / "stats.npz", **{name: parts[name] for name in ("mu", "sigma", "about")})
    asked = [f"reference={tmp_path}/stats.npz", "omega=[3]", "intervals=[[0,1]]", "ema=[2k]"]
    bare = search(trained, cache, tmp_path / "out", *asked)
    np.savez(tmp_path / "stats.npz", **parts)
    full = search(trained, cache, tmp_path / "out", *asked)
    assert full["tried"] == bare["tried"]  # distances of moments are the same, and not measured again
    for name in ("final", "unguided"):
        assert bare[name].scores["kid"] is None
        assert full[name].scores["kid"] is not None


@pytest.mark.slow
def test_the_commands_of_best_json_compose(found):
    best = json.loads((found[0] / "best.json").read_text())
    for name in ("evaluate", "sample"):
        words = best[name].split()
        assert words[:3] == ["python", "-m", f"pmf_lightning.{name}"]
        cfg = compose(words[3:], name)
        point = best["best"]["point"]
        assert (cfg.ema, cfg.omega, [cfg.t_min, cfg.t_max]) == (point["ema"], point["omega"], point["interval"])
        assert (cfg.steps, cfg.sampler, cfg.seed) == (point["steps"], point["sampler"], 0)
    assert cfg.ckpt in best["evaluate"]


@pytest.mark.parametrize(
    ("given", "repeated"),
    [
        (["extractor=timm", "extractor.name=mine", "extractor.model=resnet50.a1_in1k", "protocol=adm"], 4),
        (["protocol=adm", "protocol.name=mine", "+protocol.reference.files.64=x.npz"], 3),
        (["extractor.name=mine", "protocol.name=mine"], 2),
    ],
)
def test_the_command_of_best_json_repeats_the_user_s_rules(given, repeated, monkeypatch):
    """Also where the user has renamed an extractor or a protocol: a name is then no choice of the group."""
    arguments = ["ckpt=x", "reference=data", *given]
    monkeypatch.setattr(sys, "argv", ["search_guidance", *arguments])
    cfg = compose(arguments, "search_guidance")
    words = shlex.split(work._command_lines(cfg, START)["evaluate"])[3:]
    again = compose(words, "evaluate")
    assert (again.protocol, again.extractor) == (cfg.protocol, cfg.extractor)
    assert sum(word in given for word in words) == repeated


def test_the_commands_of_best_json_find_the_user_s_folders_and_checkpoint(tmp_path, monkeypatch):
    mine = tmp_path / "my conf"
    (mine / "extractor").mkdir(parents=True)
    shutil.copy(search_path.CONF / "extractor" / "timm.yaml", mine / "extractor" / "mine.yaml")
    given = ["extractor=mine", "extractor.model=resnet50.a1_in1k"]
    monkeypatch.setattr(sys, "argv", ["search_guidance", *given])
    with search_path.added([f"file://{mine}"]):
        cfg = compose(["ckpt='~x'", "reference=data", *given], "search_guidance")
        commands = work._command_lines(cfg, START)
    for name, command in commands.items():
        overrides, folders = search_path.taken_from(shlex.split(command)[3:])
        assert folders == [f"file://{mine}"]
        with search_path.added(folders):
            again = compose(readable(overrides, name), name)
        assert again.ckpt == "./~x"
    assert any(word == "extractor=mine" for word in shlex.split(commands["evaluate"]))


@pytest.mark.slow
def test_coordinate_finds_a_point_of_the_grid(found, trained, cache, monkeypatch):
    out, result = found
    monkeypatch.setattr(PointEvaluator, "generator", lambda self, point: pytest.fail("everything is known"))
    monkeypatch.setattr(PointEvaluator, "draw", lambda self, point, count, batch_size: torch.zeros(count, 1, 4, 4))
    again = search(trained, cache, out, "strategy=coordinate", "n_final=null")
    assert again["best"].fid == min(record.fid for record in again["tried"])
    assert 5 <= len(again["tried"]) <= 8
    assert set(map(str, (r.point for r in again["tried"]))) <= set(map(str, (r.point for r in result["tried"])))


@pytest.mark.slow
def test_a_collapsed_average_is_a_point_without_a_number(trained, cache, tmp_path):
    checkpoint = read_checkpoint(trained)
    for value in checkpoint["ema"]["1k"].values():
        value.fill_(torch.nan)
    torch.save(checkpoint, tmp_path / "spoilt.ckpt")
    found = search(tmp_path / "spoilt.ckpt", cache, tmp_path / "out", "n_final=null", "intervals=[0,1]")
    assert [(r.point.ema, r.problem) for r in found["tried"] if r.fid is None] == [("1k", "images are not finite")] * 2
    assert found["best"].point.ema == "2k"
    work.show_result(found)
    with pytest.raises(UserError, match="its images are not finite at any point"):
        search(tmp_path / "spoilt.ckpt", cache, tmp_path / "out", "n_final=null", "intervals=[0,1]", "ema=1k")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ckpt=nowhere.ckpt"], r"ckpt=nowhere.ckpt: no such file"),
        (["reference=null"], r"reference is not set.*make_stats"),
        (["reference=nowhere.npz"], r"reference=nowhere.npz: no such file"),
        (
            ["extractor=inception", "extractor.weights=no.pth", "~extractor.settings"],
            r"weights of Inception are not at",
        ),
        (["omega=0.5"], r"omega=0.5: the guidance scale is 1"),
        (["omega=[]"], r"omega=\[\]: give a list of numbers, such as omega=\[1,2,3\]"),
        (["omega=[a]"], r"omega=\['a'\]: give a list of numbers"),
        (["omega=[2,2]"], r"omega=\[2,2\]: a value is listed twice"),
        (["intervals=[0.1]"], r"intervals=0.1: each is a pair \[t_min,t_max\]"),
        (["intervals=[[0.8,0.1]]"], r"t_min=0.8 t_max=0.1: the interval needs"),
        (["ema=[2k,3k]"], r"ema=3k: the checkpoint has no such average; did you mean"),
        (["steps=[1.5]"], r"steps=\[1.5\]: give a list of integers"),
        (["steps=[0]"], r"steps=0: at least one"),
        (["sampler=[magic]"], r"sampler=magic: this model samples by average"),
        (["strategy=magic"], r"strategy=magic: there is no such strategy; known: coordinate, grid"),
        (["n=1"], r"n=1: set it to an integer, 2 or more"),
        (["n=many"], r"n=many: set it to an integer, 2 or more"),
        (["n_final=1"], r"n_final=1: set it"),
        (["batch_size=0"], r"batch_size=0"),
        (["device=gpu7"], r"device=gpu7"),
        (["out=/proc/nowhere"], r"out=/proc/nowhere: cannot be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_measured(trained, cache, tmp_path, monkeypatch, overrides, words):
    monkeypatch.setattr(PointEvaluator, "measure", lambda *_: pytest.fail("measured"))
    if "extractor=inception" in overrides:
        arguments = [f"ckpt={trained}", "reference=data", "extractor.weights=no.pth", f"out={tmp_path}"]
        with pytest.raises(UserError, match=words):
            search_guidance.search(compose(arguments, "search_guidance"))
        return
    with pytest.raises(UserError, match=words):
        search(trained, cache, tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_refused(trained, cache, tmp_path, monkeypatch):
    def encoder(path, trust):
        module, averages = load_with_averages(path, trust)
        monkeypatch.setattr(type(module.objective), "samplers", ())
        return module, averages

    monkeypatch.setattr(work, "load_every_average", encoder)
    with pytest.raises(UserError, match="pmf_tiny generates no images; give a generator"):
        search(trained, cache, tmp_path)


def test_all_averages_are_tried_where_none_is_named(trained, monkeypatch):
    module, averages = load_with_averages(trained)
    assert set(averages) == {"1k", "2k", "raw"}
    axes = make_axes(compose([f"ckpt={trained}"], "search_guidance"), module, list(averages))
    assert axes == SearchSpace(("1k", "2k"), (1, 2, 3, 4), ((0, 1), (0.1, 0.7)), (1,), ("average",))
    assert default_point(module, axes) == SamplingSetting("2k", 2, (0, 1), 1, "average")
    single = compose([f"ckpt={trained}", "omega=2", "intervals=[0.1,0.7]", "ema=raw", "steps=3"], "search_guidance")
    assert make_axes(single, module, list(averages)) == SearchSpace(("raw",), (2,), ((0.1, 0.7),), (3,), ("average",))
    del module.config["search"]
    module.config |= {"name": "my_own"}
    monkeypatch.setattr(type(module.objective), "search_preset", None)
    with pytest.raises(UserError, match=r"omega=null: .*give lists, such as omega=\[1,2,3\]"):
        make_axes(compose([f"ckpt={trained}"], "search_guidance"), module, list(averages))


def test_pictures_mark_the_best_and_bear_gaps(tmp_path):
    grid = AXES.grid()
    records = [record(point, 10.0 - i if i != 5 else None) for i, point in enumerate(grid[:9])]
    best = grid[8]
    for draw in (save_maps, save_lines):
        path = draw(records, AXES, best, "fid5k_jit", tmp_path / f"{draw.__name__}.png")
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 40) & (pixels[..., 2] < 90)
        assert red.sum() > 30, "the best is marked in red"


def test_the_command_prints_help_and_one_line_for_bad_input(trained, cache, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for arguments, code, words in ((["--help"], 0, "search_guidance ckpt=weights/pmf_b16"), ([], 2, "ckpt is not set")):
        monkeypatch.setattr(sys, "argv", ["search_guidance", *arguments])
        try:
            search_guidance.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        output, errors = capfd.readouterr()
        assert status == code
        assert words in (output if code == 0 else errors)
        assert "Traceback" not in errors


@pytest.mark.slow
def test_two_ranks_find_the_same(found, trained, cache, tmp_path):
    both = together(2, search, trained, cache, tmp_path / "out", "batch_size=8")
    alone = search(trained, cache, tmp_path / "alone", "batch_size=8")
    for result in both:
        assert [r.point for r in result["tried"]] == [r.point for r in alone["tried"]]
        assert [r.fid for r in result["tried"]] == pytest.approx([r.fid for r in alone["tried"]], rel=1e-7)
        for name in ("fid", "inception_score", "kid", "precision", "recall"):
            assert result["final"].scores[name] == pytest.approx(alone["final"].scores[name], rel=1e-6), name
    assert (tmp_path / "out" / "heat_map.png").is_file()
    assert len(list((tmp_path / "out" / "points").iterdir())) == len(list((tmp_path / "alone" / "points").iterdir()))
