"""The functions below the page: images and their cost, walks, films, columns, fields, nearest training images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from playing import module, write_run
from stored import write_folder

from pmf_lightning import UserError, sample_images
from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.evaluation.nearest import Neighbours
from pmf_lightning.playground import walking
from pmf_lightning.playground.comparing import Column, compare, first_columns
from pmf_lightning.playground.drawing import (
    Settings,
    allowed,
    controls,
    draw_seed,
    labels_of,
    own_settings,
    unit_noise,
)
from pmf_lightning.playground.films import ffmpeg, formats, save_film
from pmf_lightning.playground.inside import look_inside
from pmf_lightning.playground.models import PlayModel, load_models
from pmf_lightning.playground.page import markup

KINDS = ("pmf_tiny", "jit_tiny", "drifting_tiny")


def quick(model):
    """The settings of evaluation, with few steps."""
    own = own_settings(module(model))
    return replace(own, steps=min(own.steps, 2))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return load_models([str(write_run(folder / kind, kind)) for kind in KINDS])


@pytest.mark.parametrize("model", KINDS)
def test_images_are_those_of_sample(model):
    made, settings = module(model), quick(model)
    labels = labels_of(None, 5, 10)
    drawn = draw_seed(made, labels, 7, settings, first=2)
    options = {name: getattr(settings, name) for name in ("steps", "omega", "t_min", "t_max")}
    assert torch.equal(drawn.images, to_uint8(sample_images(made, labels, seed=7, first=2, **options)))
    assert len(drawn.images.unique()) > 20
    assert drawn.seconds > 0
    assert drawn.milliseconds_per_image == pytest.approx(1000 * drawn.seconds / 5)


def test_network_evaluations_are_counted():
    assert draw_seed(module("pmf_tiny"), labels_of(3, 1, 10), 0, Settings(4)).nfe == 4
    guided = Settings(2, omega=2.0, sampler="heun")
    assert draw_seed(module("jit_tiny"), labels_of(3, 1, 10), 0, guided).nfe == 6


def test_controls_are_those_that_change_the_images():
    known = {model: controls(module(model)) for model in KINDS}
    assert known["pmf_tiny"].guidance == known["jit_tiny"].guidance == ("omega", "t_min", "t_max")
    assert known["drifting_tiny"].guidance == ("omega",)
    assert known["drifting_tiny"].most_steps == 1
    assert known["jit_tiny"].most_steps >= 50
    asked = Settings(9, omega=0.3, t_min=0.8, t_max=0.2)
    assert allowed(module("drifting_tiny"), asked) == Settings(1, omega=1, t_min=0.2, t_max=0.8)


def test_weights_that_diverged_are_a_line(monkeypatch):
    made = module("pmf_tiny")
    monkeypatch.setattr(made, "to_pixels", lambda z: z * torch.nan)
    with pytest.raises(UserError, match="not finite"):
        draw_seed(made, labels_of(0, 1, 10), 0, Settings(1))


def test_slerp_stays_on_the_sphere():
    a, b = torch.eye(4)[:1], torch.eye(4)[1:2]
    assert torch.allclose(walking.slerp(a, b, torch.tensor([0.5])), (a + b) / 2**0.5)
    noise = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for share, expected in ((0.0, noise[0]), (1.0, noise[1])):
        assert torch.allclose(walking.slerp(*noise, torch.tensor([share])), expected, atol=1e-6)
    middle = walking.slerp(*noise, torch.tensor([0.5]))
    assert middle.norm() == pytest.approx(noise[0].norm().item(), rel=0.03)  # a straight line would give 0.7 of it
    assert torch.allclose(walking.slerp(a, 3 * a, torch.tensor([0.5])), 2 * a)
    assert walking.slerp(a, -a, torch.tensor([0.5])).isfinite().all()


@pytest.mark.parametrize("corners", [2, 4])
def test_a_tour_passes_all_corners_without_a_jump(corners):
    places = walking.tour(corners, 24)
    points = torch.stack((places.across, places.down), 1)
    steps = (points - points.roll(1, 0)).norm(dim=1)
    assert torch.allclose(steps, steps[:1].expand(24), atol=1e-6)
    assert (
        len({tuple(point) for point in points.round(decimals=4).tolist()} & {(0, 0), (1, 0), (1, 1), (0, 1)}) == corners
    )
    assert (places.to_class[0], places.to_class[12]) == (0, 1)


@pytest.mark.parametrize("model", KINDS)
def test_the_ends_of_a_walk_are_the_corners_and_the_classes(model):
    made, settings = module(model), quick(model)
    before = draw_seed(made, labels_of(3, 1, 10), 5, settings).images
    route = walking.Walk([5, 6, 7, 8], 3, 8)
    walked = [
        walking.walk(made, route, walking.place(*at), settings).images for at in ((0, 0, 0), (0, 0, 1), (0, 0, 0.5))
    ]
    assert torch.equal(walked[0], before)
    assert_close(walked[1], draw_seed(made, labels_of(8, 1, 10), 5, settings).images)
    assert not torch.equal(walked[2], walked[0])
    assert not torch.equal(walked[2], walked[1])
    assert torch.equal(draw_seed(made, labels_of(3, 1, 10), 5, settings).images, before), "the table is as it was"
    if not made.objective.sampling_conditions(0, 0, 1):  # styles are those of the first corner
        last = walking.walk(made, route, walking.place(1, 1, 0), settings).images
        assert_close(last, draw_seed(made, labels_of(3, 1, 10), 8, settings).images)


def assert_close(found, expected):
    assert (found.int() - expected.int()).abs().max() <= 1


def test_rows_of_a_map():
    places = walking.plane(3, 2, None)
    assert places.across.tolist() == [0, 0.5, 1] * 2
    assert places.to_class.tolist() == [0] * 3 + [1] * 3
    square = walking.plane(2, 2, 0.25)
    assert square.down.tolist() == [0, 0, 1, 1]
    assert square.to_class.tolist() == [0.25] * 4


def test_a_film_is_sampled_in_parts():
    whole = walking.tour(4, 50)
    parts = list(walking.in_parts(whole, 24))
    assert [len(part.across) for part in parts] == [24, 24, 2]
    for name in ("across", "down", "to_class"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_names_are_text_on_the_page():
    """Names of classes and of models come from files of others."""
    name = '"><img src=x onerror=alert(1)>'
    drawn = draw_seed(module("pmf_tiny"), labels_of(None, 2, 10), 0, Settings(1))
    model = PlayModel(name, module("pmf_tiny"), {}, name)
    near = Neighbours(drawn.images, torch.arange(2), torch.ones(2), 0.5)
    for text in (
        markup.images(drawn, [name, "other"]),
        markup.meter(drawn, name),
        markup.problem(name),
        markup.comparison([Column(model, name, 1)], [drawn], [name, name]),
        markup.neighbours(drawn.images[0], near, [name, name], 2),
    ):
        assert name not in text
        assert "&quot;&gt;&lt;img" in text


@pytest.mark.parametrize("channels", [1, 3])
def test_films_hold_every_frame(tmp_path, channels):
    frames = torch.randint(256, (14, channels, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Image.open(save_film(frames, tmp_path / "walk.gif")) as film:
        assert film.n_frames == 14
        assert film.size == (264, 264)
    with Image.open(save_film(frames, tmp_path / "walk.png")) as strip:
        pixels = np.asarray(strip.convert("RGB"))
    assert pixels.shape[:2] == (2 + 2 * 14, 2 + 12 * 14)
    assert (pixels[2:14, 2:14] == frames[0].expand(3, 12, 12).permute(1, 2, 0).numpy()).all()


@pytest.mark.skipif(ffmpeg() is None, reason="no ffmpeg is here")
def test_mp4(tmp_path):
    path = save_film(torch.zeros(5, 1, 32, 32, dtype=torch.uint8), tmp_path / "walk.mp4")
    assert path.read_bytes()[4:8] == b"ftyp"
    assert formats() == ["gif", "mp4", "png"]


def test_without_ffmpeg_there_is_no_mp4(tmp_path, monkeypatch):
    monkeypatch.setattr("pmf_lightning.playground.films.ffmpeg", lambda: None)
    assert formats() == ["gif", "png"]
    with pytest.raises(UserError, match="choose gif"):
        save_film(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), tmp_path / "walk.mp4")


def test_columns_share_the_noise(models):
    pmf, _, drifting = models
    assert pmf.averages == [pmf.average, "raw"]
    labels = labels_of(None, 3, 10)
    columns = [Column(pmf, "raw", 1), Column(pmf, pmf.average, 1), Column(pmf, "raw", 1), Column(drifting, "raw", 9)]
    found = compare(columns, labels, 4)
    assert torch.equal(found[0].images, found[2].images)
    assert not torch.equal(found[0].images, found[1].images)
    assert torch.equal(found[0].images, draw_seed(pmf.using("raw"), labels, 4, own_settings(pmf.module)).images)
    assert found[3].nfe == 1
    with pytest.raises(UserError, match="5 columns: choose 1 to 4"):
        compare([columns[0]] * 5, labels, 0)
    with pytest.raises(UserError, match="class 10"):
        compare(columns, torch.tensor([10]), 0)


def test_columns_to_begin_with(models):
    assert [column.model for column in first_columns(models)] == models
    pmf, jit, drifting = ([(c.average, c.steps) for c in first_columns([model])] for model in models)
    assert pmf == [(models[0].average, 1), (models[0].average, 4), (models[0].average, 2), ("raw", 1)]
    assert [steps for _, steps in jit] == [50, 1, 4, 50]
    assert [steps for _, steps in drifting] == [1, 1]


def test_images_of_different_sizes_are_refused(models, tmp_path):
    (small,) = load_models([str(write_run(tmp_path / "small", "pmf_tiny", "data.resolution=16"))])
    with pytest.raises(UserError, match="different sizes"):
        compare([Column(models[0], "raw", 1), Column(small, "raw", 1)], labels_of(0, 1, 10), 0)


@pytest.mark.parametrize("model", KINDS)
def test_fields_lead_from_the_noise_to_the_image(model):
    made, settings = module(model), replace(quick(model), steps=1)
    found = look_inside(made, 3, 8, settings)
    assert torch.equal(found.z[0], made.objective.noise_scale * unit_noise(made, 3, 1)[0])
    image = draw_seed(made, labels_of(8, 1, 10), 3, settings).images[0]
    if model == "drifting_tiny":
        assert not found.fields
        assert_close(to_uint8(found.z[1]), image)
        return
    times = [(field.r, field.t) for field in found.fields]
    assert len(times) == (14 if model == "pmf_tiny" else 4)
    z = dict(zip(found.times, found.z, strict=True))
    for field in found.fields:
        assert torch.allclose(field.x, z[field.t] - field.t * field.u, atol=1e-5)
    if model == "pmf_tiny":
        (whole,) = [field for field in found.fields if (field.r, field.t) == (0, 1)]
        assert_close(to_uint8(whole.x), image)


def test_models_have_different_names_and_stay_apart(tmp_path):
    run, weights = write_run(tmp_path / "pmf_tiny-a"), write_folder(tmp_path / "weights")
    models = load_models([str(run), str(run / "checkpoints" / "last.ckpt"), str(weights)])
    assert [model.name for model in models] == ["pmf_tiny-a", "pmf_tiny-a #2", "pmf_tiny (weights)"]
    assert models[2].averages == ["raw"]
    assert models[0].class_names[3] == "3"
    (raw,) = load_models([str(run)], ema="raw")
    images = [draw_seed(model.using(), labels_of(0, 1, 10), 0, Settings(1)).images for model in (models[0], raw)]
    assert not torch.equal(*images)


@pytest.mark.parametrize(
    ("paths", "ema", "words"),
    [
        (["nowhere"], None, "ckpt=nowhere: no such file"),
        (["a", "b", "c", "d", "e"], None, "5 checkpoints; a page compares 1 to 4"),
        (["run"], "7k", "ema=7k"),
        (["mae"], None, "ckpt=mae: mae_tiny generates no images; give a generator"),
    ],
)
def test_models_that_are_refused(tmp_path, monkeypatch, paths, ema, words):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    if paths == ["mae"]:
        write_run(tmp_path / "mae", "mae_tiny")
    with pytest.raises(UserError, match=words):
        load_models(paths, ema)
