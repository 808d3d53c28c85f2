"""The page of runs: tables, marks, arms, verdict, files, keeping, the index; on runs that tests write themselves."""

import csv
import json
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from processes import python
from written_runs import ARMS, FD, study, write_grid, write_run, write_study

from pmf_lightning import UserError
from pmf_lightning.report import main
from pmf_lightning.reports import writing
from pmf_lightning.reports.commands import write_page
from pmf_lightning.reports.committed import is_generated, thinned, without_paths
from pmf_lightning.reports.markdown import headlines, plain
from pmf_lightning.reports.plots import strip_of
from pmf_lightning.reports.runs import log_name, read_run, read_runs
from pmf_lightning.reports.runs_file import pack, to_text, unpack
from pmf_lightning.reports.section import section_of
from pmf_lightning.reports.settings import settings_of
from pmf_lightning.reports.study import read_study
from pmf_lightning.reports.sweeps import read_sweeps
from pmf_lightning.reports.table import runs_table, table_of
from pmf_lightning.sweeps import sweep_file

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
COMMITTED = sorted(path.parent for path in EXPERIMENTS.glob("*/runs.json") if is_generated(path.parent / "README.md"))


def only(*roots):
    (sweep,) = read_sweeps(list(roots))
    return sweep


def column(sweep, name):
    table = table_of(sweep)
    place = list(table.header).index(name)
    return {row.cells[0]: row.cells[place] for row in table.rows}


@pytest.fixture
def only_samples(monkeypatch):
    """Draw samples alone, where drawings do not matter: plots take a second each."""
    monkeypatch.setattr(writing, "PICTURES", {"samples.png": writing.PICTURES["samples.png"]})


# Runs and their numbers


def test_a_run_is_read_with_its_numbers_and_log(tmp_path):
    run = read_run(write_run(tmp_path / "r", 3, 5.0, summary={"by_steps": {"4": {"fd": 7.0}}}), tmp_path)
    assert (run.name, run.seed, run.state, run.reason) == ("r", 3, "finished", "")
    assert (run.number("fd"), run.number("by_steps.4.fd"), run.number("by_steps.2.fd"), run.number("no")) == (
        5,
        7,
        None,
        None,
    )
    assert len(run.log) == 10
    assert log_name(run.log, "fd", run.summary) == "fd_digits"


def test_the_full_name_of_a_distance_means_the_one_measured(tmp_path):
    fid = {"fid": 3.5, "fd": None, "metric": "fid50k_jit"}
    run = read_run(write_run(tmp_path / "r", summary=fid), tmp_path)
    assert run.number("fid50k_jit") == run.number("fid") == 3.5
    assert log_name([{"images": 1, "fid50k_jit": 9.0}], "fid", fid) == "fid50k_jit"
    assert log_name([{"images": 1, "fidelity": 9.0}], "fid", {}) is None


def test_a_log_that_a_kill_cut_short_loses_its_last_row_only(tmp_path):
    folder = write_run(tmp_path / "r")
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole + '{"step": 11, "ima')
    assert len(read_run(folder, tmp_path).log) == 10


def test_wandb_files_in_a_run_directory_are_not_runs(tmp_path):
    write_study(tmp_path)
    place = tmp_path / "x-small-seed0" / "wandb" / "run-20261122_120000-abc" / "files"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("seed:\n  value: 0\nstudy:\n  value: null\n")
    assert [len(arm.runs) for arm in only(tmp_path).arms] == [2, 2, 2, 2]


def test_a_table_holds_mean_and_range_of_each_arm_in_the_papers_order(tmp_path):
    sweep = only(write_study(tmp_path))
    assert [arm.name for arm in sweep.arms] == list(ARMS)
    ours = column(sweep, "ours: fd")
    for arm, seeds in FD.items():
        mean = f"{statistics.fmean(seeds):.3g}"
        assert ours[arm] == f"{mean} ({min(seeds):.3g} to {max(seeds):.3g})"
    assert column(sweep, "paper: FID-50K") == {arm: f"{number:g}" for arm, number in ARMS.items()}
    assert column(sweep, "numbers in a patch") == dict(zip(ARMS, ["64", "64", "1024", "1024"], strict=True))
    assert column(sweep, "NFE") == dict.fromkeys(ARMS, "1")
    assert column(sweep, "seeds") == dict.fromkeys(ARMS, "2")
    assert "state" not in table_of(sweep).header
    best = [row.cells[row.best] for row in table_of(sweep).rows if row.best is not None]
    assert best == [ours["x-large"]]  # 8.0


def test_failed_stopped_and_missing_arms_are_marked_with_the_reason(tmp_path):
    write_study(tmp_path, {"x-small": (8.0, None), "u-small": (None,)})
    (tmp_path / "u-small-seed0" / "error.txt").write_text("step 30: the loss is not finite\n")
    (tmp_path / "x-large-seed0").mkdir()
    (tmp_path / "x-large-seed0" / "error.txt").write_text("data.root=/x: there is no such folder\n")
    sweep = only(tmp_path)
    assert column(sweep, "state") == dict(zip(ARMS, ["finished", "failed", "failed", "missing"], strict=True))
    assert column(sweep, "seeds") == dict(zip(ARMS, ["1 of 2", "0 of 1", "0", "0"], strict=True))
    section = section_of(sweep)
    assert list(section.troubles) == [
        "x-small, seed 1: stopped, at 640 of 640 images, or it is still running",
        "u-small, seed 0: failed, step 30: the loss is not finite",
        "x-large: failed, data.root=/x: there is no such folder",
        "u-large: missing, it has no run",
    ]
    assert section.answer == "Reproduced: open"
    assert [mark for mark, _, _ in section.claims] == ["open", "open"]
    assert column(sweep, "ours: fd") == dict(zip(ARMS, ["8", "", "", ""], strict=True))


def test_a_run_that_stopped_early_does_not_count(tmp_path):
    write_run(tmp_path / "r0", 0, 3.0, summary={"stopped_early": True})
    write_run(tmp_path / "r1", 1, 5.0)
    sweep = only(tmp_path)
    assert sweep.arms[0].spread("fd").mean == 5
    assert [run.state for run in sweep.runs] == ["stopped", "finished"]


def test_of_the_same_arm_and_seed_the_newest_finished_run_counts(tmp_path):
    for name, fd, day in (("old", 9.0, 1), ("new", 5.0, 2), ("broken", None, 3)):
        write_run(tmp_path / name, 0, fd, study("x-small"), record={"started": f"2026-11-0{day}T12:00:00+0000"})
    sweep = only(tmp_path)
    assert sweep.arms[0].spread("fd").mean == 5
    assert len(sweep.omitted) == 2
    assert "broken is omitted: new has the same setting and seed" in sweep.omitted
    assert only(tmp_path, tmp_path).omitted == sweep.omitted  # a folder named twice is read once


def test_of_the_same_arm_and_seed_a_run_with_the_number_counts_before_a_newer_one_without(tmp_path):
    for name, summary, day in (("old", {}, 1), ("new", {"fd": None}, 2)):
        started = {"started": f"2026-11-0{day}T12:00:00+0000"}
        write_run(tmp_path / name, 0, 9.0, study("x-small"), summary=summary, record=started)
    sweep = only(tmp_path)
    assert sweep.arms[0].spread("fd").mean == 9
    assert sweep.omitted == ["new is omitted: old has the same setting and seed"]


def test_runs_of_other_settings_are_not_seeds_of_an_arm(tmp_path):
    """Nor do keys that older versions did not write make another setting, nor a class that has moved."""
    adam = {"_target_": "torch.optim.Adam", "lr": 0.1}
    moved = {"_target_": "pmf_lightning.optim.optimizers.adam", "lr": 0.1, "ns_dtype": "auto"}
    for seed, optimizer in enumerate([adam, moved]):
        write_run(
            tmp_path / "one" / f"a-seed{seed}", seed, 3.0 + seed, study("x-small"), images=100000, optimizer=optimizer
        )
    write_run(tmp_path / "one" / "a-seed2", 2, 500.0, study("x-small"), images=1000, optimizer=adam)
    write_run(tmp_path / "two" / "a-seed0", 0, 700.0, study("x-small"), images=99, optimizer={**adam, "lr": 0.2})
    sweep = only(tmp_path / "one", tmp_path / "two")
    assert (sweep.arms[0].spread("fd").mean, sweep.arms[0].spread("fd").seeds) == (3.5, 2)
    first, other = tmp_path / "one" / "a-seed0", tmp_path / "two" / "a-seed0"
    assert sweep.omitted == [
        f"a-seed2 is omitted: unlike {first} it has images 1000 instead of 100,000",
        f"{other} is omitted: unlike {first} it has images 99 instead of 100,000, optimizer.lr 0.2 instead of 0.1",
    ]


def test_what_changes_no_result_makes_no_other_setting(tmp_path):
    first = {"compile": False, "data": {"root": "/a"}, "posttrain": {"weights": None, "rate": 2}}
    second = {"compile": True, "data": {"root": "/b"}, "posttrain": {"weights": {}, "rate": 2.0}}
    for seed, config in enumerate([first, second]):
        write_run(tmp_path / f"a-seed{seed}", seed, 3.0, study("x-small"), **config)
    assert only(tmp_path).arms[0].spread("fd").seeds == 2


def test_of_two_settings_the_one_with_results_and_else_the_newest_is_kept(tmp_path):
    for day, (images, fd) in enumerate([(10, 5.0), (20, 6.0), (30, None)], 1):
        record = {"started": f"2026-11-0{day}T12:00:00+0000"}
        write_run(tmp_path / f"a{images}", 0, fd, study("x-small"), images=images, record=record)
    assert [run.name for run in only(tmp_path).arms[0].runs] == ["a20"]


def test_runs_without_a_number_are_no_seeds(tmp_path):
    for seed, fd in enumerate([1.0, None, float("nan")]):
        write_run(tmp_path / f"a-seed{seed}", seed, 1.0, study("x-small"), summary={"fd": fd})
    sweep = only(tmp_path)
    assert column(sweep, "seeds")["x-small"] == "1 of 3"
    assert section_of(sweep).troubles[:2] == [
        "x-small, seed 1: finished, without fd",
        "x-small, seed 2: finished, but its fd is nan, not a number",
    ]


def test_missing_keys_give_empty_cells(tmp_path):
    bare = {"fd": None, "class_accuracy": None, "images_per_second": None, "nfe": None, "wall_seconds": None}
    write_run(tmp_path / "x-small-seed0", 0, 1.0, study("x-small"), summary=bare, log=False, record=False)
    shutil.rmtree(tmp_path / "x-small-seed0" / "grids")
    main([str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "Reproduced: open" in text
    assert "![" not in text  # nothing to draw
    assert "ours: fd" not in text


# Verdict and claims


def test_the_verdict_of_a_study_is_that_of_its_claims(tmp_path):
    section = section_of(only(write_study(tmp_path)))
    assert section.answer == "Reproduced: yes"
    assert section.verdict.words == "All 2 claims hold. 2 seeds per arm."
    assert section.claims[0][2].startswith(
        "ours (fd): x-large 8 (7 to 9), u-large 125 (120 to 130), 15.6 times; the paper: x-large 9.56"
    )
    worse = {**FD, "u-large": (8.0, 10.0)}
    other = section_of(only(write_study(tmp_path / "other", worse)))
    assert (other.answer, [mark for mark, _, _ in other.claims]) == ("Reproduced: partly", ["no", "yes"])
    assert "The ranges of seeds overlap for x-large and u-large." in other.verdict.words


def test_a_study_that_cannot_be_understood_is_refused_by_name(tmp_path):
    with pytest.raises(
        UserError, match=r"here: the study lacks arms; conf/experiment/pmf_table2/study.yaml is an example"
    ):
        read_study(study("x-small", arms=None), "here")
    with pytest.raises(UserError, match=r"study.arms.a='many'; give the paper's number, or null"):
        read_study(study("x-small", arms={"a": "many"}), "here")
    with pytest.raises(UserError, match=r"study pmf_table2: claim 1 \(s\): there is no key lowr; did you mean lower"):
        read_study(study("x-small", claims=[{"says": "s", "lowr": "x-small"}]), "here")


# Sweeps without a study


@pytest.mark.parametrize(
    ("runs", "settings"),
    [
        (
            [("a.patch=4 seed=0", {"a": {"patch": 4}}), ("a.patch=8", {"a": {"patch": 8}})],
            [{"a.patch": 4}, {"a.patch": 8}],
        ),
        # a default equals the same value typed; seeds and paths are ignored
        ([("a=1 seed=0", {"a": 1}), ("cache_dir=x", {"a": 1})], [{}, {}]),
        ([("a=1", {"a": 1}), ("", {"a": 2})], [{"a": 1}, {"a": 2}]),
        # the choice of a group is shown as typed
        ([("model=a +b=3", {"b": 3}), ("model=c ~d", {"b": None})], [{"model": "a", "b": 3}, {"model": "c", "b": "-"}]),
        ([("model=a", {"name": "a"}), ("", {"name": "b"})], [{"model": "a"}, {"model": "b"}]),
        (
            [("optimizer=adam", {"optimizer": {"lr": 1}}), ("", {"optimizer": {}})],
            [{"optimizer": "adam"}, {"optimizer": "-"}],
        ),
    ],
)
def test_settings_are_the_overrides_that_differ(tmp_path, runs, settings):
    found = []
    for number, (command, config) in enumerate(runs):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "run.json").write_text(json.dumps({"command": f"python -m pmf_lightning.train {command}"}))
        found.append(read_run(folder, tmp_path))
    assert settings_of(found) == settings


def test_runs_of_other_configurations_are_other_arms(tmp_path):
    for name, seed, width in (("a", 0, 1), ("b", 1, 1), ("c", 0, 2)):
        write_run(tmp_path / name, seed, 1.0, width=width, record={"command": "python mine.py"})
    assert [(arm.name, len(arm.runs)) for arm in only(tmp_path).arms] == [("a", 2), ("c", 1)]


@pytest.mark.parametrize(("typed", "arms"), [(False, [2]), (True, [1, 1])])
def test_weights_that_an_experiment_names_by_the_seed_make_no_arms(tmp_path, typed, arms):
    for seed in (0, 1):
        options = f" init_from=base{seed}" if typed else ""
        record = {"command": f"python -m pmf_lightning.train experiment=mine{options}"}
        write_run(tmp_path / str(seed), seed, 1.0, init_from=f"base{seed}", record=record)
    assert [len(arm.runs) for arm in only(tmp_path).arms] == arms


def test_the_runs_that_sweep_json_lists_are_read(tmp_path, capsys):
    folder, elsewhere = tmp_path / "runs" / "multirun" / "now", tmp_path / "runs" / "pmf_digits-digits"
    runs = [
        write_run(elsewhere / f"{patch}", 0, float(patch), backbone={"patch": patch}, log=False) for patch in (4, 8)
    ]
    write_run(elsewhere / "of another sweep", 0, 1.0)
    below = write_run(folder / "below", 0, 16.0, backbone={"patch": 16}, log=False)
    (elsewhere / "empty").mkdir()
    listed = [*runs, elsewhere / "empty", elsewhere / "gone", below]
    sweep_file.write(
        folder,
        [
            *(sweep_file.SweepRun("", 0, place, ["backbone.patch=4", "seed=0"]) for place in listed),
            sweep_file.SweepRun("", 0, None),
        ],
        {},
    )
    assert [run.name for run in only(folder).runs] == [
        "../../pmf_digits-digits/4",
        "../../pmf_digits-digits/8",
        "below",
    ]
    main([str(folder)])
    assert "Best: patch 4" in capsys.readouterr().out
    assert (folder / "report.md").is_file()


def test_an_ad_hoc_sweep_has_arms_and_a_best_one(tmp_path):
    for patch, seed, fd in ((4, 0, 5.0), (4, 1, 6.0), (8, 0, 5.8), (8, 1, 8.0)):
        write_run(tmp_path / "sweep" / f"{patch}-{seed}", seed, fd, backbone={"patch": patch})
    sweep = only(tmp_path / "sweep")
    assert [arm.name for arm in sweep.arms] == ["patch 4", "patch 8"]
    section = section_of(sweep)
    assert section.answer == "Best: patch 4"
    assert (
        section.verdict.words
        == "fd 5.5 (5 to 6); next is patch 8 with 6.9 (5.8 to 8). Their ranges of seeds overlap. 2 seeds per arm."
    )
    assert not any(name.startswith("paper") for name in table_of(sweep).header)
    assert section.headline.ours == "patch 4 5.5 (5 to 6); patch 8 6.9 (5.8 to 8)"


def test_runs_on_different_data_are_not_compared(tmp_path):
    for data, patch, fd in (("digits", 4, 150.0), ("digits", 8, 140.0), ("folder", 4, 7.0)):
        config = {"data": {"name": data, "classes": 10}, "backbone": {"patch": patch}}
        write_run(tmp_path / "runs" / f"{data}{patch}", 0, fd, **config)
    digits, folder = map(section_of, read_sweeps([tmp_path / "runs"]))
    assert (digits.title, digits.answer) == ("Sweep runs-digits", "Best: patch 8")
    assert (folder.title, folder.answer) == ("Sweep runs-folder", "Open")


def test_arms_of_many_settings_have_the_names_of_their_runs(tmp_path):
    for number in (1, 2):
        options = {f"option_{name}": number for name in "abcdefgh"}
        write_run(tmp_path / f"run{number}", 0, 5.0 * number, **options)
    sweep = only(tmp_path)
    assert [arm.name for arm in sweep.arms] == ["run1", "run2"]
    assert sweep.arms[1].columns["option_h"] == "2"


# The files


def test_one_study_gives_all_files(tmp_path, capsys):
    main([str(write_study(tmp_path / "runs")), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *("report.md", "report.html", "results.csv", "measure.png", "curves.png", "samples.png")
    }
    assert "Reproduced: yes. All 2 claims hold. 2 seeds per arm." in printed
    assert all(str(path) in printed for path in out.iterdir())
    text = (out / "report.md").read_text()
    assert "[pMF, table 2](https://arxiv.org/abs/2601.22158)" in text
    assert "python -m pmf_lightning.train -m experiment=pmf_table2 seed=0,1" in text
    assert "- machine: cpu, one thread of 2 cores" in text
    assert "- time: 2 min a run, 16 min for 8 runs" in text
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [(row["arm"], row["seed"], float(row["fd"])) for row in rows] == [
        (arm, str(seed), fd) for arm, seeds in FD.items() for seed, fd in enumerate(seeds)
    ]
    assert rows[0]["paper"] == "3.8"
    assert rows[0]["run"] == "x-small-seed0"


class Seen(dict):
    """What an HTML page is made of: its tags, their attributes, their nesting."""

    def __init__(self, text):
        from html.parser import HTMLParser

        parser, stack, self.tags = HTMLParser(), [], []
        parser.handle_starttag = lambda tag, attrs: self._open(tag, dict(attrs), stack)
        parser.handle_endtag = lambda tag: self._close(tag, stack)
        parser.feed(text)
        assert stack == []

    def _open(self, tag, attributes, stack):
        self.tags.append((tag, attributes, tuple(stack)))
        if tag not in ("meta", "link", "img"):
            stack.append((tag, attributes.get("class")))

    def _close(self, tag, stack):
        assert stack.pop()[0] == tag


def test_the_page_is_one_file(tmp_path):
    main([str(write_study(tmp_path))])
    text = (tmp_path / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"https://arxiv.org/abs/2601.22158"}
    tags = Seen(text).tags
    assert {tag for tag, _, _ in tags}.isdisjoint({"script", "iframe", "object", "video"})
    assert all(a["href"].startswith(("data:", "https://arxiv.org/", "#")) for _, a, _ in tags if "href" in a)
    pictures = [a for tag, a, _ in tags if tag == "img"]
    assert len(pictures) == 3
    assert all(a["src"].startswith("data:image/png;base64,iVBOR") and a["alt"] for a in pictures)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert any(a.get("name") == "viewport" for tag, a, _ in tags if tag == "meta")
    for tag, _, above in tags:  # what may be wide scrolls inside its own box
        if tag in ("table", "img"):
            assert ("div", "box") in above


def test_texts_of_runs_are_escaped(tmp_path):
    write_run(tmp_path / "a", 0, 1.0, study("x-small", title="<b>x</b> | *u* <script>"))
    write_run(tmp_path / "b", 0, None, study("u-small"))
    (tmp_path / "b" / "error.txt").write_text("<img src=http://x> `a|b`\n")
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;img src=http://x&gt;" in page
    assert plain("<b> | *u* `c`") == r"\<b\> \| \*u\* \`c\`"


def test_several_sweeps_have_a_section_each_and_a_comparison_on_top(tmp_path, only_samples):
    write_study(tmp_path / "one")
    write_study(tmp_path / "two", scale="paper", title="The same at full size")
    for patch in (4, 8):
        write_run(tmp_path / "loose" / f"{patch}", 0, float(patch), backbone={"patch": patch})
    out = tmp_path / "out"
    main([*(str(tmp_path / name) for name in ("one", "two", "loose")), "--out", str(out)])
    text = (out / "report.md").read_text()
    assert re.findall(r"^#+ (.*)", text, re.M) == [
        *("3 sweeps", "x works where patches outgrow the network", "The same at full size", "Sweep loose")
    ]
    top = [line for line in text.split("##")[0].splitlines() if line.startswith("|")]
    assert top[0] == "| finding | paper | ours | reproduced | seeds | cost |"
    assert top[2] == (
        "| x works where patches outgrow the network (pMF, table 2) | x-large 9.56; u-large 164.89 "
        "| x-large 8 (7 to 9); u-large 125 (120 to 130) | yes | 2 | 4 arms, 2 min each |"
    )
    assert top[4] == "| sweep loose |  | patch 4 4; patch 8 8 | best: patch 4 | 1 | 2 arms, 2 min each |"
    assert (out / "pmf_table2-paper-samples.png").is_file()
    page = Seen((out / "report.html").read_text())
    assert {a["href"] for tag, a, _ in page.tags if tag == "a"} >= {"#s1", "#s2", "#s3"}
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["sweep"] for row in rows] == ["pmf_table2/small"] * 8 + ["pmf_table2/paper"] * 8 + ["loose"] * 2


def test_sweeps_of_one_name_have_pictures_of_their_own(tmp_path, only_samples):
    for place, patches in (("a", (4, 8)), ("b", (16, 32))):
        for patch in patches:
            write_run(tmp_path / place / "mine" / f"{patch}", patch, float(patch), backbone={"patch": patch})
    out = tmp_path / "out"
    main([str(tmp_path / "a" / "mine"), str(tmp_path / "b" / "mine"), "--out", str(out)])
    files = re.findall(r"!\[.*?\]\((.*?)\)", (out / "report.md").read_text())
    assert files == ["mine-samples.png", "mine-2-samples.png"]
    assert len({(out / file).read_bytes() for file in files}) == 2


@pytest.mark.parametrize("grey", [True, False])
def test_samples_are_cut_pixel_for_pixel(tmp_path, grey, only_samples):
    for patch in (4, 8):
        write_run(tmp_path / f"{patch}", 0, float(patch), backbone={"patch": patch}, grey=grey)
    main([str(tmp_path)])
    drawn = np.asarray(Image.open(tmp_path / "samples.png"))
    grid = np.asarray(Image.open(tmp_path / "4" / "grids" / "final.png"))
    strip = grid[: 2 * 66 + 2]
    assert drawn.shape[:2] == (2 * (24 + len(strip)), grid.shape[1])
    for top in (24, 2 * 24 + len(strip)):
        np.testing.assert_array_equal(drawn[top : top + len(strip)], strip[..., 0] if grey else strip)


# Saving


def saved(tmp_path, *, numbers=None):
    write_study(tmp_path / "runs", numbers)
    folder = tmp_path / "experiments" / "pmf_table2"
    main([str(tmp_path / "runs"), "--save", str(folder)])
    return folder


FILES = {"README.md", "results.csv", "measure.png", "curves.png", "samples.png", "runs.json"}


@pytest.mark.slow
def test_a_saved_study_makes_the_same_page_again(tmp_path, monkeypatch):
    folder = saved(tmp_path, numbers={**FD, "u-large": (120.0, None)})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == FILES
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.chdir(folder)
    main(["."])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    moved = tmp_path / "elsewhere" / "pmf_table2"
    shutil.move(folder, moved)
    monkeypatch.chdir(tmp_path)
    main([str(moved)])
    assert (moved / "README.md").read_bytes() == before["README.md"]


def test_a_saved_study_equals_its_runs(tmp_path, only_samples):
    folder = saved(tmp_path)
    runs, again = only(tmp_path / "runs"), only(folder)
    assert table_of(again) == table_of(runs)
    assert [arm.name for arm in again.arms] == [arm.name for arm in runs.arms]
    assert section_of(again).claims == section_of(runs).claims
    assert runs_table(again) == runs_table(runs)
    for one, other in zip(runs.runs, again.runs, strict=True):
        assert without_paths(one.config) == other.config
        assert thinned(one.log) == other.log
    assert [run.samples is not None for run in again.runs] == [True, False] * 4  # one run stands for an arm


def test_saved_samples_are_cut_out_where_a_page_has_other_runs_too(tmp_path, only_samples):
    folder = saved(tmp_path)
    shutil.rmtree(tmp_path / "runs" / "u-large-seed0")
    main([str(tmp_path / "runs"), str(folder), "--out", str(tmp_path / "both")])
    both, small = (np.asarray(Image.open(place / "samples.png").convert("L")) for place in (tmp_path / "both", folder))
    assert both.shape == small.shape
    assert (both != small).any()
    strip = 2 * 66 + 2
    np.testing.assert_array_equal(both[-strip:], small[-strip:])  # u-large is the last arm
    assert len(np.unique(both[-strip:])) > 3


def test_runs_are_packed_without_loss():
    runs = [
        {"name": "a", "config": {"x": 1, "f": {}, "g": {"h": 1, "i": [2]}, "columns": {"p": 1, "q": 2}}, "record": {}},
        {"name": "b", "config": {"x": 1.0, "f": {"w": 1}, "g": {"h": 1, "i": [3]}, "columns": {"p": 1, "q": 3}}},
        {"name": "c", "config": {"x": True, "f": {}, "g": {"h": 1}, "columns": {"p": 1}}, "summary": {"fd": 1.5}},
        {"name": "d", "error": "it failed", "log": [{"step": 1, "images": 2}, {"step": 2, "images": 4, "fd": 3.0}]},
    ]
    packed = pack(runs)
    assert packed["common"] == {"config": {"g": {"h": 1}}}
    again = unpack(json.loads(to_text(packed)))
    assert again == runs
    assert [type(run["config"]["x"]) for run in again[:3]] == [int, float, bool]
    assert list(again[1]["config"]["columns"]) == ["p", "q"]  # a page shows them in this order
    assert unpack(pack(runs[:1])) == runs[:1]
    assert all(len(line) <= 120 for line in to_text({"a": {"b": "c" * 70, "d": "e" * 70}}).splitlines())


def test_saved_files_contain_no_paths_of_this_machine(tmp_path, only_samples):
    folder = saved(tmp_path)
    for name in FILES - {"measure.png", "curves.png", "samples.png"}:
        text = (folder / name).read_text()
        assert str(tmp_path) not in text
        assert "/home" not in text
    run = only(folder).runs[0]
    assert (run.config["cache_dir"], run.config["run_dir"]) == (".../pmf", ".../x-small-seed0")
    assert "checkpoint" not in run.summary


def test_paths_end_in_their_last_name_and_links_stay():
    assert without_paths({"a": ["run_dir=/tmp/x/y seed=0", 3, None]}) == {"a": ["run_dir=.../y seed=0", 3, None]}
    for text in ("https://arxiv.org/abs/2601.22158", "runs/a/b", "1/2", "~/data", "x / y", "pMF-{B,L,H}/16"):
        assert without_paths(text) == text


def test_a_log_is_thinned_to_its_shape():
    rows = [
        {"step": n, "images": 64 * n, "loss_u": n / 3, "loss_u/t0-0.2": 1.0, "grad_norm": 2.0} for n in range(1, 1001)
    ]
    rows[122]["fd_digits"] = 12.34567
    small = thinned(rows)
    assert len(small) <= 62
    assert small[0] == {"step": 1, "images": 64, "loss_u": 0.3333}
    assert small[-1]["step"] == 1000
    assert {"step": 123, "images": 64 * 123, "loss_u": 41.0, "fd_digits": 12.35} in small
    assert thinned([]) == []
    assert thinned(small) == small


def test_nothing_written_by_hand_is_overwritten(tmp_path, capsys):
    write_study(tmp_path / "runs")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "README.md").write_text("# mine\n")
    assert refused(capsys, [str(tmp_path / "runs"), "--save", str(folder)]).endswith(
        "written by hand; name another folder\n"
    )
    assert (folder / "README.md").read_text() == "# mine\n"
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    message = refused(capsys, [str(tmp_path / "runs"), "--save", str(tmp_path)])
    assert "the runs themselves are in it" in message


def test_saving_again_replaces_the_earlier_runs(tmp_path, only_samples):
    folder = saved(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    write_study(tmp_path / "runs", {"x-small": (3.0,)})
    main([str(tmp_path / "runs"), "--save", str(folder)])
    assert [run.name for run in only(folder).runs] == ["x-small-seed0"]
    assert only(folder).arms[0].spread("fd").mean == 3


def test_arms_whose_names_make_one_file_name_are_all_saved(tmp_path, only_samples):
    for number, kind in enumerate(("a/b", "a b", "c")):
        write_run(tmp_path / "runs" / f"{number}", 0, float(number), backbone={"kind": kind})
    main([str(tmp_path / "runs"), "--save", str(tmp_path / "saved")])
    assert [run.name for run in read_runs(tmp_path / "saved")] == [
        *("kind-a-b-seed0", "kind-a-b-2-seed0", "kind-c-seed0")
    ]
    assert {arm.name: arm.spread("fd").mean for arm in only(tmp_path / "saved").arms} == {
        **{"kind a/b": 0.0, "kind a b": 1.0, "kind c": 2.0}
    }


def test_a_page_written_by_hand_stays(tmp_path, only_samples):
    folder = saved(tmp_path)
    (folder / "README.md").write_text("# mine\n")
    main([str(folder)])
    assert (folder / "README.md").read_text() == "# mine\n"
    assert (folder / "report.md").is_file()


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_results_make_their_own_page(folder, tmp_path, monkeypatch):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    drawn = {
        name: (lambda sweep, path: path if path.is_file() else None, *rest)
        for name, (_, *rest) in writing.PICTURES.items()
    }
    monkeypatch.setattr(writing, "PICTURES", drawn)  # pictures are not compared: their bytes hang on matplotlib
    assert len(write_page(copy).files) == 5  # README.md, results.csv and three pictures
    for name in ("README.md", "results.csv", "samples.png"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()


# The index


def test_the_index_lists_the_saved_studies(tmp_path, only_samples):
    folder = saved(tmp_path)
    experiments = folder.parent
    (experiments / "by_hand").mkdir()
    (experiments / "by_hand" / "README.md").write_text("# mine\n")
    readme = experiments / "README.md"
    readme.write_text("# Experiments\n\n<!-- studies -->\nold\n<!-- /studies -->\n\nrest\n")
    main(["--index", str(experiments)])
    line = (
        "| [x works where patches outgrow the network (pMF, table 2)](pmf_table2) | x-large 9.56; u-large 164.89 "
        "| x-large 8 (7 to 9); u-large 125 (120 to 130) | yes | 2 | 4 arms, 2 min each |"
    )
    table = f"| finding | paper | ours | reproduced | seeds | cost |\n{'|---' * 6}|\n{line}"
    total = "1 study: 1 reproduced, 0 partly, 0 not. 2 of 2 claims hold."
    between = f"<!-- studies -->\n\n{total}\n\n{table}\n\n<!-- /studies -->"
    assert readme.read_text() == f"# Experiments\n\n{between}\n\nrest\n"
    main(["--index", str(experiments)])
    assert readme.read_text().count(line) == 1
    assert is_generated(folder / "README.md")
    assert not is_generated(experiments / "by_hand" / "README.md")
    assert headlines([]).count("\n") == 1


# Bad input


def refused(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    assert "there is no such folder; give a folder of runs" in refused(capsys, [str(tmp_path / "no")])
    assert "there is no run below it (no config.yaml and no runs.json)" in refused(capsys, [str(tmp_path)])
    assert "name folders of runs, or --index" in refused(capsys, [])
    assert "remove --out" in refused(capsys, [str(tmp_path), "--save", "a", "--out", "b"])
    assert "it has no README.md" in refused(capsys, ["--index", str(tmp_path)])
    (tmp_path / "README.md").write_text("<!-- studies -->\n")
    assert "README.md has 1 marks; put <!-- studies --> before" in refused(capsys, ["--index", str(tmp_path)])
    write_run(tmp_path / "runs" / "a", 0, 1.0)
    write_run(tmp_path / "runs" / "b", 0, 1.0, study("x-small"))
    message = refused(capsys, [str(tmp_path / "runs"), "--save", str(tmp_path / "saved")])
    assert "it takes one sweep, these are pmf_table2 (small), runs" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "a: [1\n", "config.yaml: it cannot be read (while parsing a flow sequence"),
        ("config.yaml", "- 1\n", "config.yaml: it cannot be read (it has no keys and values)"),
        ("summary.json", "{", "summary.json: it cannot be read (Expecting property name"),
        ("config.yaml", "seed: often\n", "seed='often' is not an integer"),
        ("config.yaml", "study: {name: e, scale: small}\n", "the study lacks source, title, arm, measure, arms"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, capsys, name, content, message):
    write_run(tmp_path / "r")
    (tmp_path / "r" / name).write_text(content)
    error = refused(capsys, [str(tmp_path)])
    assert message in error
    assert error.startswith(f"error: {tmp_path / 'r'}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["error.txt", "grids/final.png"])
def test_damaged_files_end_in_one_line(tmp_path, capsys, only_samples, name):
    path = write_run(tmp_path / "r") / name
    path.write_bytes(path.read_bytes()[:-40] if path.is_file() else "Zürich".encode("latin-1"))
    error = refused(capsys, [str(tmp_path)])
    assert error.startswith(f"error: {path}: it cannot be read (")
    assert error.count("\n") == 1


def test_wide_grids_are_shrunk(tmp_path):
    folder = write_run(tmp_path / "r", data={"classes": 10, "resolution": 256})
    write_grid(folder / "grids" / "final.png", columns=10, rows=4, side=256)
    strip = strip_of(read_run(folder, tmp_path), rows=2)
    assert strip.size == (662, round((2 * 258 + 2) * 662 / 2582))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 2}, "its format is 2; this version reads 1"),
        ({"format": 1, "runs": [{"name": 3}]}, "an entry of runs, has the wrong type"),
        ({"format": 1, "runs": [{"name": "a", "log": {"step": [1], "images": []}}]}, "has the wrong type"),
        ([], "it has no keys and values"),
        ({"format": 1, "runs": []}, "there is no run below it"),
    ],
)
def test_a_runs_json_that_cannot_be_read_is_named(tmp_path, capsys, content, message):
    (tmp_path / "runs.json").write_text(json.dumps(content))
    assert message in refused(capsys, [str(tmp_path)])


def test_help_comes_without_torch_and_matplotlib():
    code = (
        "import sys\nfrom pmf_lightning.report import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "assert {'torch', 'lightning', 'hydra', 'matplotlib'}.isdisjoint(sys.modules), 'help'\n"
        "import pmf_lightning.report\n"
        "assert {'torch', 'lightning', 'hydra'}.isdisjoint(sys.modules), 'report'\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "python -m pmf_lightning.report runs/pmf_table2/small" in done.stdout
