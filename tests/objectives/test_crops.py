"""Crops of image pairs: the official law and pixels, torch's own resizing, gradients."""

import math

import pytest
import torch
from conftest import REFERENCE, _load
from torch.nn.functional import interpolate

from pmf_lightning.objectives.crops import UNIFORMS, CropLaw, crop_boxes, resized_crops
from pmf_lightning.utils.rng import uniform

PAPER = CropLaw([0.08, 1.0], [3 / 4, 4 / 3])


@pytest.fixture(scope="module")
def official():
    """Crops by pMF's official JAX code, with the numbers that it drew."""
    assert (REFERENCE / "crops.npz").is_file()
    return _load("crops.npz")


def uniforms(rows, *names):
    return uniform(0, *names, count=rows * UNIFORMS).view(rows, UNIFORMS)


def whole(rows):
    return torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(rows, 4)


def images(rows, channels, height, width, dtype=torch.float64):
    return (
        uniform("images", count=rows * channels * height * width).view(rows, channels, height, width).to(dtype) * 2 - 1
    )


def test_boxes_are_the_official_ones(official):
    height, width = official["x1"].shape[2:]
    area = (official["area"].double() - 0.08) / 0.92
    shape = (official["log_ratio"].double() - math.log(3 / 4)) / math.log(16 / 9)
    top, left, tall, wide = official["box"].double().unbind(1)
    down, right = (top + 0.5) / (height - tall + 1), (left + 0.5) / (width - wide + 1)
    boxes = crop_boxes(torch.stack((area, shape, down, right), 1), height, width, PAPER)
    pixels = boxes * torch.tensor([height, width, height, width])
    torch.testing.assert_close(pixels, official["box"].double(), rtol=0, atol=1e-12)
    assert (official["box"][:, 2] == height).any(), "the reference has a box cut to the image's height"


@pytest.mark.parametrize(("image", "crop"), [("x1", "small1"), ("x2", "small2"), ("x1", "large1")])
def test_crops_are_the_official_ones(official, image, crop):
    height, width = official[image].shape[2:]
    boxes = official["box"] / torch.tensor([height, width, height, width])
    got = resized_crops(official[image], boxes, official[crop].shape[-1])
    torch.testing.assert_close(got, official[crop], rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [5, 17, 40, 64])
def test_the_whole_image_is_resized_as_torch_does(side):
    x = images(2, 3, 40, 28)
    wanted = interpolate(x, (side, side), mode="bicubic", antialias=True)
    torch.testing.assert_close(resized_crops(x, whole(2), side), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [8, 64])
def test_a_box_sees_the_pixels_around_it(side):
    x = images(1, 1, 32, 32)
    got = resized_crops(x, torch.tensor([[0.25, 0.5, 0.5, 0.5]]), side)
    wanted = interpolate(x, (2 * side, 2 * side), mode="bicubic", antialias=True)[..., side // 2 : -side // 2, side:]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_every_row_has_its_own_box():
    x, boxes = images(5, 2, 24, 20), crop_boxes(uniforms(5), 24, 20, PAPER)
    alone = torch.cat([resized_crops(x[i : i + 1], boxes[i : i + 1], 16) for i in range(5)])
    torch.testing.assert_close(resized_crops(x, boxes, 16), alone, rtol=0, atol=1e-13)
    assert len(boxes.unique(dim=0)) == 5


def test_law_of_the_boxes():
    rows = 20_000
    top, left, tall, wide = crop_boxes(uniforms(rows), 300, 300, PAPER).unbind(1)
    assert min(top.min(), left.min()) == 0
    assert (top + tall).max() <= 1 + 1e-12
    assert (left + wide).max() <= 1 + 1e-12
    free = (tall < 1) & (wide < 1)
    area, ratio = (tall * wide)[free], (wide / tall)[free]
    assert 0.079 < area.min() < 0.09
    assert 0.9 < area.max() < 1
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    height, width = 200, 300
    small = crop_boxes(uniforms(rows), height, width, CropLaw([0.08, 0.3], [3 / 4, 4 / 3]))  # none is cut
    area, ratio = small[:, 2] * small[:, 3], small[:, 3] * width / (small[:, 2] * height)
    assert area.mean().item() == pytest.approx(0.19, abs=0.002)
    assert area.std().item() == pytest.approx(0.22 / 12**0.5, rel=0.02)
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.01)
    assert ratio.log().std().item() == pytest.approx(math.log(16 / 9) / 12**0.5, rel=0.02)
    places = (small[:, 0] * height).round() / ((1 - small[:, 2]) * height).round()
    assert places.mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_extremes_of_the_numbers_stay_inside():
    corners = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for size in ((1, 1), (3, 7), (32, 32)):
        boxes = crop_boxes(torch.cartesian_prod(*[corners] * 4), *size, PAPER)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] > 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-12).all()


def test_gradient_is_the_transpose():
    x = images(2, 1, 9, 9).requires_grad_()
    boxes = crop_boxes(uniforms(2), 9, 9, PAPER)
    assert torch.autograd.gradcheck(lambda x: resized_crops(x, boxes, 6), x)


def test_a_constant_image_stays_constant_and_half_precision_is_widened():
    boxes = crop_boxes(uniforms(3), 32, 32, PAPER)
    crops = resized_crops(torch.full((3, 3, 32, 32), -0.7), boxes, 224)
    torch.testing.assert_close(crops, torch.full_like(crops, -0.7), rtol=0, atol=1e-6)
    x = images(3, 1, 32, 32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = resized_crops(x, boxes, 24)
    assert torch.equal(got, resized_crops(x, boxes, 24))
    assert resized_crops(x.bfloat16(), boxes, 24).dtype == torch.float32


@pytest.mark.parametrize("area", [[0.0, 1.0], [0.5, 0.2], [0.1, 1.1], [0.1]])
def test_wrong_areas_are_refused(area):
    with pytest.raises(ValueError, match=r"crop\.area"):
        CropLaw(area, [0.75, 1.5])


@pytest.mark.parametrize("ratio", [[0, 1], [2, 1], [1, 1, 1]])
def test_wrong_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match=r"crop\.ratio"):
        CropLaw([0.08, 1], ratio)
