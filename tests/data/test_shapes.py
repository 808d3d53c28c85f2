"""Painted shapes: what they show, at every size, from keys alone; and that runs and metrics take them."""

import hashlib
import math
from itertools import pairwise

import pytest
import torch
from common import relative
from shrunk import BACKBONE

from pmf_lightning import UserError, compose
from pmf_lightning.data.dataset import DataSource, ImageDataset, first_images
from pmf_lightning.data.sources.shapes import outlines, painting
from pmf_lightning.data.sources.shapes.outlines import OUTLINES
from pmf_lightning.data.sources.shapes.painting import colours, paint
from pmf_lightning.data.sources.shapes.scenes import NUMBERS, Scenes, sample_scenes
from pmf_lightning.data.sources.shapes.source import VERSION, Shapes
from pmf_lightning.train import train
from pmf_lightning.utils.hydra_compat import instantiate

NAMES = [outline.name for outline in OUTLINES]
SIZES = {"name": "shapes", "resolution": 64, "channels": 3, "classes": 10, "images": 50_000, "held_out_images": 1000}


def shapes(**changes) -> Shapes:
    return Shapes(**{**SIZES, **changes})


def scene(label, **numbers) -> Scenes:
    """One scene; what is not given is in the middle, and not turned."""
    unit = [numbers.get(name, 0.0 if name == "angle" else 0.5) for name in NUMBERS]
    return Scenes(torch.tensor([label]), torch.tensor([unit], dtype=torch.float64))


# Keys


def test_an_image_depends_on_name_split_and_number_alone():
    held_out = shapes().held_out()
    assert isinstance(held_out, ImageDataset)
    assert isinstance(shapes(), DataSource)
    chosen = [7, 3, 999, 13, 3]
    images, labels = held_out.batch(chosen)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [7, 3, 9, 3, 3]
    for image, i in zip(images, chosen, strict=True):
        alone, label = held_out[i]
        assert torch.equal(alone, image)
        assert label == held_out.labels[i] == i % 10
    assert torch.equal(images[1], images[4])
    more = shapes(held_out_images=2000, images=7).held_out().batch(chosen)
    assert torch.equal(more[0], images)
    for other in (shapes(name="others").held_out(), shapes().train()):
        assert not torch.equal(other.batch(chosen)[0], images)


def test_pixels_are_pinned():
    """Raise shapes.VERSION with these: caches and the queues of Drifting's checkpoints hold the images of before."""
    pixels = hashlib.sha256()
    for side in (32, 64):
        pixels.update(shapes(resolution=side).held_out().batch(range(20))[0].numpy().tobytes())
    assert (VERSION, pixels.hexdigest()[:16]) == (2, "7a04d453bb4af651")


@pytest.mark.parametrize("up", [True, False])
def test_the_last_bit_of_a_library_decides_nothing(monkeypatch, up):
    """Cosines, sines and powers of any tensor come one float64 higher, or lower; constants too."""
    scenes = sample_scenes("any", "train", range(300), 10)
    before = paint(scenes, 48)
    nudged = []

    def nudge(call):
        def other(number, *rest):
            value = call(number, *rest)
            nudged.append(value)
            if isinstance(value, float):
                return math.nextafter(value, math.inf if up else -math.inf)
            return torch.nextafter(value, torch.full_like(value, math.inf if up else -math.inf))

        return other

    for name in ("cos", "sin", "__pow__"):
        monkeypatch.setattr(torch.Tensor, name, nudge(getattr(torch.Tensor, name)))
    for name in ("cos", "sin"):
        monkeypatch.setattr(outlines.math, name, nudge(getattr(math, name)))
    assert torch.equal(paint(scenes, 48), before)
    assert {type(value) for value in nudged} == {float, torch.Tensor}


def test_an_image_is_the_same_in_any_company(monkeypatch):
    scenes = sample_scenes("any", "train", range(40), 10)
    together = paint(scenes, 48)
    monkeypatch.setattr(painting, "TILE", 48 * 7)  # few lines at a time
    assert torch.equal(paint(scenes.rows(slice(3, 17)), 48), together[3:17])


def test_numbers_out_of_range_are_refused():
    few = shapes(images=5).train()
    for wrong in (5, -1):
        with pytest.raises(IndexError):
            few.batch([0, wrong])
    with pytest.raises(ValueError, match="classes 10 to 10"):
        scene(10)
    assert few.batch([])[0].shape == (0, 3, 64, 64)


# Pixels


@pytest.mark.parametrize("label", range(10), ids=NAMES)
def test_outlines_are_distances_that_fill_the_circle(label):
    """Of unit slope beside the edge, negative inside, upright by symmetry, as large as the circle around them."""
    line = torch.linspace(-1.5, 1.5, 601, dtype=torch.float64)
    v, u = torch.meshgrid(line, line, indexing="ij")
    distance = OUTLINES[label].distance(u, v)
    inside = distance < 0
    reach = (u.square() + v.square()).sqrt()[inside].max()
    assert 0.97 < reach <= 1.001
    down, right = torch.gradient(distance, spacing=(line, line))
    slope = (down.square() + right.square()).sqrt()
    edge = distance.abs() < 0.02
    assert ((slope[edge] - 1).abs() < 0.02).double().mean() > 0.9, "but for corners"
    turns = OUTLINES[label].symmetry or 7
    angle = 2 * math.pi / turns
    turned = OUTLINES[label].distance(
        u * math.cos(angle) - v * math.sin(angle), u * math.sin(angle) + v * math.cos(angle)
    )
    assert (turned - distance)[edge].abs().max() < 1e-9
    if turns not in (1, 7):  # but no smaller turn looks the same
        half = OUTLINES[label].distance(
            u * math.cos(angle / 2) - v * math.sin(angle / 2), u * math.sin(angle / 2) + v * math.cos(angle / 2)
        )
        assert (half - distance)[edge].abs().max() > 0.05


def test_areas_are_those_of_geometry():
    """Sums of coverage, where the shape is large: anti-aliased edges count what they cover."""
    radius, areas = painting.SMALLEST + (painting.LARGEST - painting.SMALLEST) / 2, {}
    for label, name in enumerate(NAMES):
        one, blank = (paint(scene(label, hue=hue), 256)[0].double() for hue in (0.1, 0.6))
        difference = (one - blank).abs().sum(0)
        areas[name] = (difference / difference.max()).sum().item() / 256**2 / radius**2
    notch, tip = 0.45, 1.0
    expected = {
        "disc": math.pi,
        "square": 2,
        "triangle": 3 * math.sqrt(3) / 4,
        "star": 5 * notch * tip * math.sin(math.pi / 5),
        "ring": math.pi * (1 - 0.55**2),
        "cross": 4 * 0.6 * math.sqrt(1 - 0.09) - 0.36,
        "pentagon": 2.5 * math.sin(2 * math.pi / 5),
    }
    for name, area in expected.items():
        assert areas[name] == pytest.approx(area, rel=0.01), name
    assert all(0.8 < area < 3.2 for area in areas.values())


def test_the_same_scene_at_every_resolution():
    scenes = sample_scenes("shapes", "train", range(50), 10)
    small = paint(scenes, 64).double()
    for side in (128, 256):
        large = paint(scenes, side).double()
        averaged = torch.nn.functional.avg_pool2d(large, side // 64)
        difference = (averaged - small).abs()
        assert difference.mean() < 0.3, "levels of 255; 0.2 come from rounding"
        assert (difference > 15).double().mean() < 0.001, "at corners"
        shifted = (averaged[..., 1:] - small[..., :-1]).abs()
        assert shifted.mean() > 3 * difference.mean()


def test_numbers_mean_what_they_say():
    side = 64
    blank = {"hue": 0.1}, {"hue": 0.6}

    def mask(**numbers):
        one, two = (paint(scene(0, **{**numbers, **hue}), side)[0].double() for hue in blank)
        return (one - two).abs().sum(0) > 20

    def middle(where):
        return [(where.any(dim).nonzero().double().mean().item() + 0.5) / side for dim in (0, 1)]

    assert middle(mask()) == pytest.approx([0.5, 0.5], abs=0.01)
    radius = painting.SMALLEST + (painting.LARGEST - painting.SMALLEST) / 2
    assert middle(mask(x=0.0)) == pytest.approx([radius, 0.5], abs=0.02)
    assert middle(mask(y=0.999)) == pytest.approx([0.5, 1 - radius], abs=0.02)
    sizes = [mask(size=size).sum().item() for size in (0.0, 0.5, 1.0)]
    assert sizes[0] < sizes[1] < sizes[2]
    corners = paint(scene(0, light=0.125), side)[0].double().sum(0)  # to the right and down
    assert corners[0, 0] < corners[0, -1] == pytest.approx(corners[-1, 0], abs=4)
    assert corners[0, -1] < corners[-1, -1]
    upright, turned = (paint(scene(2, angle=angle), side)[0].double() for angle in (0.0, 0.5))
    assert upright[:, 20].sum() < upright[:, 40].sum(), "point up"
    assert relative(turned.flip(1), upright) < 0.05 + relative(paint(scene(2), side)[0].flip(1).double(), upright)


def test_shapes_stand_out_from_any_ground():
    hue = torch.linspace(0, 1, 100, dtype=torch.float64)
    tones = [colours(hue, *tone) for tone in (painting.DARK, painting.LIGHT, painting.FRONT)]
    for tone in tones:
        assert 0 < tone.min() < tone.max() < 255.001, "inside what a screen can show"
    luminance = [tone @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64) for tone in tones]
    for darker, lighter in pairwise(luminance):
        assert lighter.min() > darker.max() + 25
    grey = colours(hue[:1], 1.0, 0.0)
    assert grey[0].tolist() == pytest.approx([255] * 3, abs=0.1)
    assert colours(hue[:1], 0.0, 0.0)[0].tolist() == [0, 0, 0]


# Dimension


@pytest.mark.parametrize("label", range(10), ids=NAMES)
def test_dimension_is_the_rank_of_the_derivative(label):
    """Every latent number moves the image in a direction of its own; those of a class are all there are."""
    inside = {"x": 0.4, "y": 0.6, "size": 0.5, "hue": 0.3, "ground": 0.8, "light": 0.2, "angle": 0.35}
    step, rows = 0.02, []
    for name in NUMBERS:
        up, down = (
            paint(scene(label, **{**inside, name: inside[name] + sign * step}), 128)[0].double() for sign in (1, -1)
        )
        rows.append((up - down).flatten())
    moved = torch.stack([row for row in rows if row.norm() > 0])
    values = torch.linalg.svdvals(moved / moved.norm(dim=1, keepdim=True))
    assert len(moved) == (6 if NAMES[label] in ("disc", "ring") else 7)
    assert values.min() > 0.2


def test_discs_and_rings_have_no_angle():
    scenes = shapes().scenes("train", range(200))
    free = torch.tensor([NAMES[label] in ("disc", "ring") for label in scenes.classes.tolist()])
    assert free.sum() == 40
    assert (scenes.number("angle")[free] == 0).all()
    assert (scenes.number("angle")[~free] > 0).all()
    assert scenes.unit.min() >= 0
    assert scenes.unit.max() < 1
    assert (scenes.unit[:, :6].mean(0) - 0.5).abs().max() < 0.1


# Settings and runs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 1}, "data.channels=1: shapes are coloured"),
        ({"resolution": 8}, "data.resolution=8: .* 16 or more"),
        ({"classes": 11}, "data.classes=11: set it between 1 and 10"),
        ({"images": 0}, "data.images=0"),
        ({"held_out_images": 0}, "data.held_out_images=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        shapes(**changes).check()
    with pytest.raises(UserError, match=words):
        shapes(**changes).train()


def test_fingerprint_follows_the_settings():
    changes = {"name": "a", "resolution": 32, "classes": 9, "images": 8, "held_out_images": 9}
    found = {shapes().fingerprint(), *(shapes(**{key: value}).fingerprint() for key, value in changes.items())}
    assert len(found) == 6


def test_the_preset_brings_its_data_unless_told_others():
    assert isinstance(instantiate(compose(["model=pmf_shapes"]).data), Shapes)
    assert compose(["model=pmf_shapes", "data.resolution=256"]).data.resolution == 256
    assert compose(["model=pmf_shapes", "data=digits"]).data.name == "digits"


def test_the_first_of_them():
    train_set = shapes().train()
    first = first_images(train_set, 25)
    assert isinstance(first, ImageDataset)
    assert len(first) == len(first.labels) == 25
    assert torch.equal(first.batch([3, 24])[0], train_set.batch([3, 24])[0])
    assert first[4][1] == 4
    with pytest.raises(IndexError):
        first.batch([25])
    assert len(first_images(shapes(images=9).train(), 25)) == 9


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pmf_shapes", "jit_tiny", "drifting_tiny", "mae_tiny"])
def test_every_objective_trains_on_them(model, tmp_path):
    quick = ["images=96", "batch=32", "log_every_steps=1", "checkpoint.every_images=96", "sample_grid.every_images=96"]
    shrunk = ["backbone.base_channels=32", "backbone.blocks=[1, 1, 1, 1]"] if model == "mae_tiny" else BACKBONE
    if model == "drifting_tiny":
        quick += ["objective.samples_per_label=4", "queues.positives=4", "queues.negatives=4"]
    if model == "mae_tiny":
        quick += ["sampling.ema=raw"]
    run = [f"model={model}", "data=shapes", "data.resolution=32", "data.images=200", "metrics=none", *quick, *shrunk]
    summary = train(compose([*run, "sampling.steps=1", f"run_dir={tmp_path}"]))
    assert summary["steps"] == 3
    assert summary["skipped_steps"] == 0
    assert (tmp_path / "grids" / "final.png").is_file()


def test_the_metric_judges_them_without_holding_them_all(tmp_path, monkeypatch):
    asked = []
    batch = painting.paint

    def counted(scenes, resolution):
        asked.append(len(scenes))
        return batch(scenes, resolution)

    monkeypatch.setattr("pmf_lightning.data.sources.shapes.source.paint", counted)
    run = ["model=pmf_shapes", "data.resolution=16", "data.held_out_images=30", "data.images=500", "steps=1", *BACKBONE]
    quick = [
        "metrics.classifier.steps=3",
        "metrics.reference_images=100",
        "metrics.batch_size=40",
        "sample_grid.enabled=false",
    ]
    folders = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path}"]
    summary = train(compose([*run, *quick, *folders, "batch=16"]))
    assert summary["n"] == 30
    assert summary["fd"] > summary["fd_floor"] > 0
    assert max(asked) <= 64
    assert [40, 40, 20] in [asked[i : i + 3] for i in range(len(asked))], "100 of the 500, some at a time"
