"""HTML of the page: images as data URIs in grids that fit every width, with what they cost."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.evaluation.nearest import Neighbours
from pmf_lightning.playground.comparing import Column
from pmf_lightning.playground.drawing import Drawn
from pmf_lightning.playground.inside import Fields
from pmf_lightning.toys.fields import noise_content
from pmf_lightning.utils.errors import UserError

SHARP = 64  # pixels up to which an image is shown with visible pixels


def data_uri(image: UInt8[Tensor, "c h w"]) -> str:
    """Return an image as the address of a PNG: grey below three channels, else the first three as RGB."""
    levels = (image[0] if len(image) < 3 else image[:3].permute(1, 2, 0)).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def tile(image: UInt8[Tensor, "c h w"], words: str, caption: str = "", kind: str = "") -> str:
    """Return a figure: an image with its description for those who do not see it, and a caption."""
    sharp = " sharp" if image.shape[-1] <= SHARP else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="tile {kind}{sharp}"><img src="{data_uri(image)}" alt="{escape(words)}">{below}</figure>'


def grid(tiles: Sequence[str], columns: int, kind: str = "") -> str:
    """Return tiles row by row in ``columns`` columns of one width."""
    return f'<div class="grid {kind}" style="--columns:{columns}">{"".join(tiles)}</div>'


def images(drawn: Drawn, names: Sequence[str]) -> str:
    """Return the images of Draw; ``names`` are their classes, shown if they differ."""
    several = len(set(names)) > 1
    columns = 5 if several and len(names) % 5 == 0 else math.ceil(math.sqrt(len(names)))
    tiles = [
        tile(image, f"generated image {number + 1}: {name}", name if several else "")
        for number, (image, name) in enumerate(zip(drawn.images, names, strict=True))
    ]
    return grid(tiles, columns, "large" if columns < 3 else "")


def meter(drawn: Drawn, about: str) -> str:
    """Return what images cost: measured time per image, network evaluations per image, and the batch."""
    facts = [
        (_time(drawn.milliseconds_per_image), "per image"),
        (str(drawn.nfe), "network evaluation" + "s" * (drawn.nfe != 1)),
        (_time(1000 * drawn.seconds), f"for {len(drawn.images)} at once"),
    ]
    shown = "".join(f"<span><b>{value}</b> {words}</span>" for value, words in facts)
    return f'<div class="meter" role="status">{shown}<span class="about">{escape(about)}</span></div>'


def _time(milliseconds: float) -> str:
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def problem(words: str) -> str:
    """Return a line about what cannot be shown."""
    return f'<p class="problem" role="alert">{escape(words)}</p>'


def in_one_line(outputs: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a handler that returns ``outputs`` texts of HTML: bad input is a line instead of the first."""

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(handler)
        def careful(*values: Any) -> Any:
            try:
                return handler(*values)
            except UserError as error:
                words = problem(str(error))
                return words if outputs == 1 else (words, *[""] * (outputs - 1))

        return careful

    return wrap


def walk_place(here: Drawn, ends: Drawn, words: str) -> str:
    """Return the image at the current place between those of the corners, ``ends``."""
    letters = "ABCD"[: len(ends.images)]
    corners = [tile(image, f"corner {name}", name, "corner") for image, name in zip(ends.images, letters, strict=True)]
    half = len(corners) // 2
    middle = tile(here.images[0], f"image {words}", "", "here")
    left, right = corners[:half], corners[half:]
    if len(corners) == 4:
        left, right = [corners[0], corners[2]], [corners[1], corners[3]]
    sides = [f'<div class="side">{"".join(side)}</div>' for side in (left, right)]
    return f'<div class="between">{sides[0]}{middle}{sides[1]}</div>'


def walk_map(route: Drawn, columns: int) -> str:
    """Return small images of places all over the walk, row by row."""
    tiles = [tile(image, f"place {number + 1} of the walk") for number, image in enumerate(route.images)]
    return grid(tiles, columns, "map")


def comparison(columns: Sequence[Column], drawn: Sequence[Drawn], names: Sequence[str]) -> str:
    """Return the images of Compare: a column each with its cost, a row for each noise."""
    cells = []
    for column, found in zip(columns, drawn, strict=True):
        weights = "raw weights" if column.average == "raw" else f"ema {column.average}"
        steps = f"{column.steps} step" + "s" * (column.steps != 1)
        cost = f"<b>{_time(found.milliseconds_per_image)}</b> per image</span><span>NFE <b>{found.nfe}</b>"
        head = f"<strong>{escape(column.model.name)}</strong><span>{escape(weights)}, {steps}</span><span>{cost}</span>"
        words = [f"{column.model.name}, {steps}: {name}" for name in names]
        tiles = [tile(image, text) for image, text in zip(found.images, words, strict=True)]
        cells.append(f'<section><header>{head}</header><div class="stack">{"".join(tiles)}</div></section>')
    return f'<div class="comparison" style="--columns:{len(cells)}">{"".join(cells)}</div>'


def fields(found: Fields) -> str:
    """Return z along the path, then u and x for every (r, t), each with its noise content (1: white noise)."""
    shown = [
        tile(_scaled(z, t), f"z at t = {t:g}", f"t = {t:g}", "field") for t, z in zip(found.times, found.z, strict=True)
    ]
    path = f"<section><h3>z, from noise to image</h3>{grid(shown, len(shown))}</section>"
    if not found.fields:
        return (
            f'<div class="fields">{path}<p>This model goes from noise to image in one step: no path between.</p></div>'
        )
    average = any(field.r < field.t for field in found.fields)
    largest = max(field.u.abs().max().item() for field in found.fields)
    name = "u(z, r, t), the average velocity" if average else "v(z, t), the velocity"
    predicted = f"x = z - t {name[0]}, the predicted image"
    tables = _triangle(found, name, "u", largest) + _triangle(found, predicted, "x", 1.0)
    note = "Below each: noise content, the share of high frequencies (1: white noise, 0: smooth)."
    return f'<div class="fields">{path}<div class="pair">{tables}</div><p>{note}</p></div>'


def _triangle(found: Fields, title: str, which: str, largest: float) -> str:
    """Return a table of one field: a column for each t, a row for each r, as in figure 1 of pMF."""
    columns = sorted({field.t for field in found.fields})
    rows = sorted({field.r for field in found.fields})
    average = any(field.r < field.t for field in found.fields)
    at = {(field.r, field.t): getattr(field, which) for field in found.fields}
    head = "".join(f'<th scope="col">t = {t:g}</th>' for t in columns)

    def cell(r: float, t: float) -> str:
        if (r, t) not in at:
            return "<td></td>"
        field = at[r, t]
        content = f"{noise_content(field[None]).item():.2f}"
        return f"<td>{tile(to_uint8(field / largest), f'{which} at r = {r:g}, t = {t:g}', content, 'field')}</td>"

    if average:
        body = "".join(f'<tr><th scope="row">r = {r:g}</th>{"".join(cell(r, t) for t in columns)}</tr>' for r in rows)
        head = f"<td></td>{head}"
    else:
        body = f"<tr>{''.join(cell(t, t) for t in columns)}</tr>"
    return f"<section><h3>{title}</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></section>"


def _scaled(z: Float[Tensor, "c h w"], t: float) -> UInt8[Tensor, "c h w"]:
    """Return z as levels: an image at t=0, else divided by its largest magnitude if that is above 1."""
    return to_uint8(z if t == 0 else z / torch.clamp(z.abs().max(), min=1))


def neighbours(image: UInt8[Tensor, "c h w"], found: Neighbours, names: Sequence[str], compared: int) -> str:
    """Return a generated image beside its nearest training images, with the answer to "is it a copy?"."""
    tiles = [tile(image, "the generated image", "generated", "here")]
    for near, label, distance in zip(found.images, found.labels.tolist(), found.distances.tolist(), strict=True):
        tiles.append(tile(near, f"training image of {names[label]}", f"{names[label]}, {distance:.1f}"))
    share = f"{100 * found.closer_than:.0f}%"
    answer = (
        f"Its nearest of {compared:,} training images is at distance <b>{found.distances[0].item():.1f}</b>. "
        f"<b>{share}</b> of held-out images are farther from theirs. A copy has distance 0."
    )
    title = "<h3>Is it a copy? Nearest training images in the features of a classifier</h3>"
    return f'<section class="near">{title}{grid(tiles, len(tiles))}<p>{answer}</p></section>'
