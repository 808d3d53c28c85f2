"""Find an EMA by its name, its half-life in images, or its decay per step."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pmf_lightning.config.validate import ema_names
from pmf_lightning.utils.errors import UserError, called, suggestions
from pmf_lightning.utils.precision import Number

_UNITS = {"": 1, "k": 1000, "kimg": 1000, "m": 1000**2, "mimg": 1000**2}
_HALF_LIFE = re.compile(r"(\d+)(?:\.(\d+))?\s*(k|kimg|m|mimg|)", re.IGNORECASE)


def find_average(requested: str | Number, known: Iterable[str], config: Mapping[str, Any]) -> str:
    """Return the ``requested`` average among the ``known`` names.

    ``requested`` is a name ("500k", "raw"), a half-life in images in another form ("0.5M", "500000"), or a decay per
    step ("0.9999") for the batch of the model's configuration ``config``. Half-lives and decays match if they are equal
    at the given digits. Raises UserError if no average or several match.
    """
    known, text = list(known), str(requested).strip()
    if text in known:
        return text
    half_lives = {name: images for name, images in _half_lives(config).items() if name in known}
    decays = {name: 0.5 ** (config["batch"] / images) for name, images in half_lives.items()}
    if (decay := _decay(text)) is not None:
        digits = len(text.partition(".")[2])
        fitting = [name for name, value in decays.items() if round(value, digits) == decay]
    else:
        fitting = _of_half_life(text, half_lives)
    if len(fitting) == 1:
        return fitting[0]
    if decay is None and not fitting:
        raise UserError(f"{called('ema')}={requested}: the checkpoint has no such average; {suggestions(text, known)}")
    listed = ", ".join(f"{name} ({_shown(value)})" for name, value in decays.items())
    many = "the checkpoint has several such averages" if fitting else "the checkpoint has no such average"
    raise UserError(f"{called('ema')}={requested}: {many}; known, with the decay per step: {listed}, raw; give a name")


def _half_lives(config: Mapping[str, Any]) -> dict[str, Number]:
    """Return the unrounded half-lives of a model's averages, in images, by name."""
    kimg = config.get("ema", {}).get("halflife_kimg", [])
    return dict(zip(ema_names(kimg), (1000 * half_life for half_life in kimg), strict=True))


def _decay(text: str) -> float | None:
    """Parse a decay, None if the text is not one."""
    return float(text) if re.fullmatch(r"0?\.\d+", text) and float(text) > 0 else None


def _of_half_life(text: str, half_lives: Mapping[str, Number]) -> list[str]:
    """Return the averages whose half-life equals that in ``text`` to its last digit."""
    found = _HALF_LIFE.fullmatch(text)
    if found is None:
        return []
    integer, decimals, unit = found[1], found[2] or "", _UNITS[found[3].lower()]
    requested, half_a_digit = float(f"{integer}.{decimals or 0}") * unit, 0.5 * unit * 10 ** -len(decimals)
    return [name for name, images in half_lives.items() if abs(images - requested) <= half_a_digit]


def _shown(decay: float) -> str:
    """Format a decay with three significant digits of 1 - decay."""
    return f"{decay:.{max(2, 2 - math.floor(math.log10(1 - decay)))}f}" if 0 < decay < 1 else f"{decay:g}"
