"""Figure of the fields u and x for every (r, t), from the network and from the simulated path."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.objectives.fields import Image
from pmf_lightning.utils.figures import new_figure

PANELS = {
    "u": "u(z, r, t): the network",
    "x": "x(z, r, t) = z - t u: the network",
    "u_path": "u along the simulated path",
    "x_path": "x along the simulated path",
}


def save_fields(
    path: Sequence[Image],
    times: Sequence[float],
    pairs: Sequence[Any],
    measured: Mapping[str, Any],
    shown: int,
    file: Path,
) -> None:
    """Draw the fields of image number ``shown``.

    On top is z along the path. Below is a triangle of tiles (a column per t, a row per r) each for u and x. The title
    of a tile is its noise content in ``measured``, a mean over all images. x is shown in [-1, 1]; u is divided by its
    largest magnitude on the path over all tiles, each z by its own.
    """
    count = len(times) - 1
    figure = new_figure(figsize=(2 * (1.1 * count + 0.6), 1.2 * (2 * (count + 1) + 1) + 1.2), layout="constrained")
    figure.suptitle(f"noise content above each tile: 1 is white noise, 0 smooth; mean of {measured['images']} images")
    strip, *rows = figure.subfigures(3, 1, height_ratios=[1.1, count + 1.25, count + 1.25])
    largest = max(pair.u_path[shown].abs().max().item() for pair in pairs)
    strip.suptitle("z along the simulated path, from noise (t = 1) to image (t = 0)", fontsize=11)
    for axis, t, z in zip(strip.subplots(1, len(times)), times, path, strict=True):
        content = measured["noise_content_z"][str(t)]
        _tile(axis, z[shown] / z[shown].abs().max().clamp_min(1), f"t = {t:g}:  {content:.2f}")
    panels = [panel for row in rows for panel in row.subfigures(1, 2)]
    for panel, (name, title) in zip(panels, PANELS.items(), strict=True):
        panel.suptitle(title, fontsize=11)
        axes = panel.subplots(len(times), count, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        columns = list(reversed(times[:-1]))
        for pair, numbers in zip(pairs, measured["pairs"], strict=True):
            axis = axes[list(reversed(times)).index(pair.r)][columns.index(pair.t)]
            field = getattr(pair, name)[shown]
            _tile(axis, field / largest if name.startswith("u") else field, f"{numbers['noise_content'][name]:.2f}")
            if pair.r == 0:
                axis.text(0.5, 1.28, f"t = {pair.t:g}", transform=axis.transAxes, ha="center", fontsize=9)
        for r, axis in zip(reversed(times), axes[:, 0], strict=True):
            axis.text(-0.08, 0.5, f"r = {r:g}", transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.savefig(file, dpi=110)


def _tile(axis, field: Tensor, title: str) -> None:
    """Show one field in [-1, 1]: grey below three channels, else the first three as RGB."""
    pixels = to_uint8(torch.nan_to_num(field)).permute(1, 2, 0).numpy()
    grey = pixels.shape[2] < 3
    axis.imshow(pixels[:, :, 0] if grey else pixels[:, :, :3], cmap="gray" if grey else None, vmin=0, vmax=255)
    axis.set_title(title, fontsize=8, pad=2)
    axis.set_axis_off()
