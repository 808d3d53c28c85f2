"""The page of all runs: every panel finds what training logs, in words and as a workspace of W&B."""

import json
import re
import sys

import pytest
import torch
from offline_runs import logged_out, quiet_and_offline, read, sessions
from omegaconf import OmegaConf
from shrunk import backbone

from pmf_lightning import UserError, compose, dashboard
from pmf_lightning.config.compose import CONF
from pmf_lightning.evaluation.guidance_search.records import Record
from pmf_lightning.evaluation.guidance_search.space import SamplingSetting
from pmf_lightning.evaluation.guidance_search.wandb import rows, send
from pmf_lightning.evaluation.protocol import score_name
from pmf_lightning.tracking.workspace_layout import CONFIG, TIME, Lines, Pictures, read_layout, tree
from pmf_lightning.train import train
from pmf_lightning.training.plots import save_grid
from pmf_lightning.utils.hydra_compat import instantiate

SHORT = ["batch=16", "steps=3", "log_every_steps=1", "checkpoint.every_images=160"]
BARE = ["metrics=none", "sample_grid.enabled=false"]
ALL = {  # by folder: the model and its options
    "pmf": [
        *("model=pmf_tiny", "logger=wandb", "sample_grid.every_images=16", "metrics.every_images=32"),
        *("metrics.classifier.steps=3", "perceptual=classifier", "features.classifier.settings.steps=3"),
    ],
    "jit_x": ["model=jit_tiny", "objective.loss=x", *BARE],
    "jit_eps": ["model=jit_tiny", "objective.loss=eps", *BARE],
    "drifting": ["model=drifting_tiny", "drift_features=raw", *BARE],
    "mae": ["model=mae_tiny", "metrics=none", "sample_grid.every_images=16"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run directories of three steps of each kind, the first of them with W&B."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        quiet_and_offline(patch)
        patch.setattr("pmf_lightning.commands.train.finish", lambda *_: {})
        for name, options in ALL.items():
            sizes = backbone(options[0].removeprefix("model="))
            train(compose([*options, *sizes, *SHORT, f"cache_dir={root}", f"run_dir={root / name}"]))
    return root


@pytest.fixture(scope="module")
def logged(trained):
    """What all of them log together."""
    found = read(sessions(trained / "pmf")[0]).keys()
    for name in ALL:
        lines = (trained / name / "metrics.jsonl").read_text().splitlines()
        found |= {key for line in lines for key in json.loads(line)}
    return found


def layout_of(*overrides):
    return dashboard.describe(compose(["dry_run=true", *overrides], "dashboard"))


def requested_keys(layout):
    """Yield the keys that the panels read from runs: ("metric" | "match" | "picture" | "config", name)."""
    for section in layout.sections:
        for panel in section.panels:
            if isinstance(panel, Lines) and panel.match:
                yield "match", panel.match
            if isinstance(panel, Lines) and panel.x != TIME:
                yield "metric", panel.x
            for key in getattr(panel, "keys", ()):
                if isinstance(panel, Pictures):
                    yield "picture", key
                elif key.startswith(CONFIG):
                    yield "config", key.removeprefix(CONFIG)
                else:
                    yield "metric", key


RECORDS = [
    Record(SamplingSetting("1k", omega, interval, 1, "average"), {"n": 10}, {"fid": fid}, 1, 0.1)
    for omega, interval, fid in [(2, (0, 1), 5.0), (1, (0, 1), 7.0), (2, (0.1, 0.7), 4.0), (1, (0.1, 0.7), None)]
]


@pytest.mark.slow
def test_every_panel_finds_what_training_logs(trained, logged):
    with_weights_of_others = ("lpips", "convnext", "lite0")
    files = [CONF / "perceptual" / f"{name}.yaml" for name in with_weights_of_others]
    elsewhere = {name for file in files for name in OmegaConf.load(file).objective.perceptual}
    protocol = instantiate(OmegaConf.load(CONF / "protocol" / "jit.yaml"), _convert_="all")
    elsewhere |= {score_name("is", protocol, "inception", 50000)}
    for row in rows(RECORDS):
        elsewhere |= set(row)
    assert not elsewhere & logged
    config = read(sessions(trained / "pmf")[0]).config
    pictures = logged | {"reconstructions/averaged", "guidance/heat_map", "guidance/samples"}  # seen below
    for kind, name in requested_keys(layout_of()):
        if kind == "config":
            first, _, last = name.partition(".")
            assert last in config[first]
        elif kind == "match":
            assert any(re.search(name, key) for key in logged | elsewhere), name
        else:
            assert name in (pictures if kind == "picture" else logged | elsewhere), name
    assert "_runtime" in logged  # the axis "time"


@pytest.mark.slow
def test_matches_take_what_they_should(logged):
    taken = {p.title: {k for k in logged if re.search(p.match, k)} for p in _panels(layout_of(), Lines) if p.match}
    assert taken["FID or Frechet distance by images seen"] == {"fd_digits"}
    bins = {f"t{i / 5:g}-{(i + 1) / 5:g}" for i in range(5)}
    assert taken["loss_u by t"] <= {f"loss_u/{name}" for name in bins}
    assert taken["du/dt by t, root mean square"] <= {f"du_dt/{name}" for name in bins}
    assert taken["JiT, loss_eps by t"] <= {f"loss_eps/{name}" for name in bins}
    assert taken["pull before it is normalised, by temperature"] == {f"force_norm_{R}" for R in (0.2, 0.05, 0.02)}
    fids = [
        re.search("^(fid|fd)[0-9_]", name) for name in ("fid50k_jit", "fd360_classifier_jit", "fd_shapes", "fidelity")
    ]
    assert [found is not None for found in fids] == [True, True, True, False]


@pytest.mark.slow
def test_pictures_go_by_one_name_whatever_the_average(trained):
    (session,) = sessions(trained / "pmf")
    shown = [row["samples/averaged"] for row in read(session).rows if "samples/averaged" in row]
    assert [picture["caption"] for picture in shown] == [f"2k, {images} images" for images in (16, 32, 48)]


def _panels(layout, kind):
    return [panel for section in layout.sections for panel in section.panels if isinstance(panel, kind)]


def send_search(folder, picture):
    found = {"best": RECORDS[2], "tried": RECORDS, "maps": picture, "lines": picture, "samples": picture}
    study = {"name": "jit_table2", "scale": "small", "arm": "x"}
    config = {"name": "jit_tiny", "data": {"name": "digits"}, "study": study}
    send(found, {**dict.fromkeys(("entity", "group", "name", "mode")), "project": "p"}, folder, config)


def test_a_search_that_cannot_be_sent_whole_has_failed(tmp_path, monkeypatch):
    quiet_and_offline(monkeypatch)
    with pytest.raises(FileNotFoundError):
        send_search(tmp_path, tmp_path / "no.png")
    (session,) = sessions(tmp_path)
    assert read(session).exit_code == 1


def test_a_search_is_a_run_of_its_own(tmp_path, monkeypatch, capsys):
    quiet_and_offline(monkeypatch)
    send_search(tmp_path, save_grid(torch.zeros(2, 1, 8, 8), 2, tmp_path / "grid.png"))
    (session,) = sessions(tmp_path)
    sent = read(session)
    drawn = ("guidance/omega", "guidance/1k 1xaverage/t0-1", "guidance/1k 1xaverage/t0.1-0.7")
    curves = [{key: row[key] for key in drawn if key in row} for row in sent.rows]
    assert [curve for curve in curves if len(curve) == 2] == [
        {"guidance/omega": 1, "guidance/1k 1xaverage/t0-1": 7.0},
        {"guidance/omega": 2, "guidance/1k 1xaverage/t0-1": 5.0},
        {"guidance/omega": 2, "guidance/1k 1xaverage/t0.1-0.7": 4.0},
    ]
    assert {"guidance/heat_map", "guidance/samples"} <= sent.keys()
    assert sent.config["best"] == {
        "ema": "1k",
        "omega": 2,
        "t_min": 0.1,
        "t_max": 0.7,
        "steps": 1,
        "sampler": "average",
    }
    assert (sent.run.run_group, sent.run.job_type, sent.exit_code) == ("jit_table2-small", "x", 0)
    assert f"wandb sync {session}" in capsys.readouterr().out


def test_dry_run_needs_neither_account_nor_package(call_command, monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith(("wandb_workspaces", "pmf_lightning.dashboards.work"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    status, printed, errors = call_command(
        dashboard.main, "dry_run=true", "group=pmf_table2-small", "measure=fid50k_jit"
    )
    assert status == 0, errors
    assert printed.strip() == tree(layout_of("group=pmf_table2-small", "measure=fid50k_jit"))
    assert "(<entity>/pmf_lightning): runs of the group pmf_table2-small, by group and arm" in printed
    assert "all that match ^force_norm_ against images, logarithmic" in printed
    assert "fid50k_jit, last: fid50k_jit" in printed
    status, printed, _ = call_command(dashboard.main, "dry_run=true", "format=json")
    assert json.loads(printed)["sections"][0]["panels"][1]["x"] == "time"
    status, _, errors = call_command(dashboard.main, "entity=me")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "pip install 'pmf_lightning[dashboard]'" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["entity is not set", "dry_run=true"]),
        (["entity=me", "project=null"], ["project is not set"]),
        (["dry_run=true", "format=yaml"], ["format=yaml", "json, tree"]),
        (["entity=me"], ["dashboard: No API key", "dry_run=true"]),
    ],
)
def test_bad_input_is_one_line(call_command, monkeypatch, tmp_path, arguments, words):
    pytest.importorskip("wandb_workspaces")
    logged_out(monkeypatch, tmp_path)
    status, _, errors = call_command(dashboard.main, *arguments)
    assert (status, len(errors.strip().splitlines())) == (2, 1), errors
    assert all(word in errors for word in words), errors


@pytest.mark.parametrize(
    ("panel", "words"),
    [
        ({"line": {"title": "a"}}, "Quality: line: there is no such panel; did you mean lines"),
        ({"lines": {"title": "a", "key": ["b"]}}, "lines: key: there is no such option; did you mean keys"),
        ({"lines": {"title": "a"}}, "lines: a: give keys, or match"),
        ({"lines": {"title": "a", "match": "("}}, r"match=\(: not a regular expression"),
        ({"pictures": {"title": "a"}}, "pictures: .*keys"),
        ({"bars": {}, "lines": {}}, "Quality: .*a panel is one of lines, pictures"),
    ],
)
def test_bad_panels_are_named(panel, words):
    options = {"entity": None, "project": "p", "group": None, "name": None}
    with pytest.raises(UserError, match=words):
        read_layout({**options, "sections": [{"name": "Quality", "panels": [panel]}]})
    with pytest.raises(UserError, match="a section has a name and panels; add name"):
        read_layout({**options, "sections": [{"panels": [panel]}]})


def test_the_workspace_shows_every_panel(monkeypatch):
    pytest.importorskip("wandb_workspaces")
    from pmf_lightning.tracking.workspace import to_workspace

    layout = layout_of("entity=me", "group=pmf_table2-small")
    workspace = to_workspace(layout)
    spec = json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]
    sections = spec["panelBankConfig"]["sections"]
    assert [(s["name"], s["isOpen"], len(s["panels"])) for s in sections] == [
        (s.name, s.open, len(s.panels)) for s in layout.sections
    ]
    quality, samples = ([panel["config"] for panel in section["panels"]] for section in sections[:2])
    assert quality[0]["metricRegex"] == "^(fid|fd)[0-9_]"
    assert (quality[0]["xAxis"], quality[1]["xAxis"], quality[0]["yLogScale"]) == ("images", "_runtime", True)
    assert quality[3]["metrics"] == ["class_accuracy"]
    assert [panel["mediaKeys"] for panel in samples] == [list(p.keys) for p in _panels(layout, Pictures)[:3]]
    columns = [column["accessor"] for column in sections[-1]["panels"][-1]["config"]["columns"]]
    assert columns == [f"config:sampling.value.{n}" for n in ("omega", "t_min", "t_max", "steps")] + [
        "summary:fd_digits"
    ]
    (runs,) = spec["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group", "jobType"]
    assert "pmf_table2-small" in json.dumps(runs["filters"])
    assert spec["settings"]["xAxis"] == "images"
