"""Render scenes at any resolution; a downsampled image nearly equals one rendered at the lower resolution.

A shape covers a fraction clip(1/2 - d, 0, 1) of a pixel at signed distance d, in pixels, from its outline (negative:
inside). Colours are mixed by that fraction, so that edges are antialiased.

An image is identical in any batch, on any machine and with any version of torch. Libraries differ in the last bit of
cosines and powers, so these are computed once per scene and rounded to a grid (``on_grid``). All later pixel operations
are sums, products, roots and comparisons, one at a time, which round identically on every machine.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from pmf_lightning.data.sources.shapes.outlines import OUTLINES, Outline
from pmf_lightning.data.sources.shapes.scenes import LARGEST, SMALLEST, Scenes

TOGETHER = 256  # scenes whose terms are computed at once
TILE = 2**15  # pixels rendered at once, so that intermediate results fit the processor's cache

TURNS, LEVELS = 2**16, 2**8  # grid steps per unit for rounding of cosines and sines, and of colour levels

# Lightness and chroma in OKLCH: of shapes, and of the darkest and lightest part of the background.
FRONT, DARK, LIGHT = (0.78, 0.125), (0.22, 0.035), (0.46, 0.075)


def paint(scenes: Scenes, resolution: int) -> UInt8[Tensor, "n 3 side side"]:
    """Render scenes as images of ``resolution`` x ``resolution`` pixels."""
    images = torch.empty(len(scenes), 3, resolution, resolution, dtype=torch.uint8)
    for start in range(0, len(scenes), TOGETHER):
        some = slice(start, start + TOGETHER)
        images[some] = _paint(scenes.rows(some), resolution)
    return images


def _paint(scenes: Scenes, resolution: int) -> UInt8[Tensor, "n 3 side side"]:
    images = torch.empty(len(scenes), 3, resolution, resolution, dtype=torch.uint8)
    lines = torch.arange(resolution).split(max(1, TILE // resolution))
    canvas = _canvas(scenes, resolution)
    for label in scenes.classes.unique().tolist():
        rows = (scenes.classes == label).nonzero()[:, 0]
        for part in rows.split(max(1, TILE // resolution**2)):
            chosen = canvas.rows(part)
            images[part] = torch.cat([chosen.painted(OUTLINES[label], few) for few in lines], dim=2)
    return images


@dataclass(frozen=True)
class _Canvas:
    """Scenes, as terms for rendering.

    ``across`` and ``down`` [n,side] are terms per column and per line. Their sums are: u, v of the outline, in units of
    its size; the levels of the background; and the difference from these to the levels of the shape. 1/2 is included
    for rounding. ``pixels`` [n] is the size in pixels.
    """

    pixels: Tensor
    across: dict[str, Tensor]
    down: dict[str, Tensor]

    def rows(self, chosen: Tensor) -> "_Canvas":
        """Return the terms of some scenes."""
        parts = ({name: term[chosen] for name, term in terms.items()} for terms in (self.across, self.down))
        return _Canvas(self.pixels[chosen], *parts)

    def painted(self, outline: Outline, lines: Tensor) -> UInt8[Tensor, "n 3 lines side"]:
        """Render lines of scenes of one class."""

        def field(name: str) -> Tensor:
            return self.across[name][:, None] + self.down[name][:, lines, None]

        distance = outline.distance(field("u"), field("v")) * self.pixels[:, None, None]
        covered = (0.5 - distance).clamp_(0, 1)
        levels = [field(f"lack {c}").mul_(covered).add_(field(f"ground {c}")) for c in range(3)]
        return torch.stack(levels, dim=1).to(torch.uint8)


def _canvas(scenes: Scenes, side: int) -> _Canvas:
    at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    size = SMALLEST + (LARGEST - SMALLEST) * scenes.number("size")
    x, y = (size + (1 - 2 * size) * scenes.number(name) for name in ("x", "y"))
    right, below = (at - x[:, None]) / size[:, None], (at - y[:, None]) / size[:, None]
    turns = torch.tensor([1 / each.symmetry if each.symmetry else 0.0 for each in OUTLINES], dtype=torch.float64)
    cos, sin = _direction((turns[scenes.classes] * scenes.number("angle"))[:, None])
    across = {"u": cos * right, "v": -sin * right}
    down = {"u": -sin * below, "v": -cos * below}
    front = colours(scenes.number("hue"), *FRONT)
    middle, right, below = _ground(scenes)
    for c in range(3):
        ground = middle[:, c, None] + 0.5, right[:, c, None] * (at - 0.5), below[:, c, None] * (at - 0.5)
        across[f"ground {c}"], down[f"ground {c}"] = ground[1], ground[0] + ground[2]
        across[f"lack {c}"], down[f"lack {c}"] = -ground[1], front[:, c, None] + 0.5 - ground[0] - ground[2]
    single = ({name: term.float() for name, term in terms.items()} for terms in (across, down))
    return _Canvas((size * side).float(), *single)


def _ground(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Return the background levels in the middle, and their slopes to the right and downwards, each [n,3]."""
    dark, light = (colours(scenes.number("ground"), *tone) for tone in (DARK, LIGHT))
    cos, sin = _direction(scenes.number("light")[:, None])
    slope = (light - dark) / (cos.abs() + sin.abs())  # so that the extremes are at corners, or at sides
    return (dark + light) / 2, slope * cos, slope * sin


def on_grid(numbers: Float64[Tensor, "*any"], steps: int) -> Float64[Tensor, "*any"]:
    """Round numbers to multiples of 1 / steps, which removes the last bits, in which libraries differ."""
    return (numbers * steps).round() / steps


def _direction(turns: Float64[Tensor, "*any"]) -> tuple[Float64[Tensor, "*any"], Float64[Tensor, "*any"]]:
    angle = 2 * math.pi * turns
    return on_grid(angle.cos(), TURNS), on_grid(angle.sin(), TURNS)


def colours(hue: Float64[Tensor, " n"], lightness: float, chroma: float) -> Float64[Tensor, "n 3"]:
    """Return sRGB levels in [0, 255] of hues in turns, with given lightness and chroma (OKLCH, Ottosson 2020)."""
    a, b = (chroma * part for part in _direction(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short
    linear = torch.stack((red, green, blue), dim=1).clamp(0, 1)
    levels = 255 * torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return on_grid(levels, LEVELS)
