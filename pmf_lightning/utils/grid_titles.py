"""Titles above the columns of an image grid."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

HEIGHT, SIZE = 16, 11  # pixels: of the strip, of the letters
HEIGHT_KEY = "title_height"  # of the PNG's text: pixels above the images, which programs that cut the grid skip


def with_titles(grid: Image.Image, titles: Sequence[str], gap: int) -> Image.Image:
    """Return the grid below a white strip with one title per column; a title that is too long ends with dots."""
    pitch = (grid.width - gap) / len(titles)
    page = Image.new("RGB", (grid.width, grid.height + HEIGHT), "white")
    page.paste(grid, (0, HEIGHT))
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        centre = gap / 2 + (column + 0.5) * pitch
        draw.text((centre, HEIGHT / 2), _fitting(title, pitch - 4), fill="black", font=_font(), anchor="mm")
    return page


def _fitting(title: str, width: float) -> str:
    title = " ".join(title.split())[:200]
    if _font().getlength(title) <= width:
        return title
    return next((s for end in range(len(title), 0, -1) if _font().getlength(s := f"{title[:end]}…") <= width), "")


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font of matplotlib's figures, which is installed with it."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), SIZE)
