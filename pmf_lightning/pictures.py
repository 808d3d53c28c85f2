"""PNG files: grids of images and curves of metrics."""

import json
from pathlib import Path

import matplotlib
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import make_grid, save_image

from pmf_lightning.data.pixels import to_uint8

matplotlib.use("Agg")  # no screen is needed
from matplotlib import pyplot as plt

SMALLEST = 64  # pixels an image has on a grid, at least: digits of 32 pixels are hard to see


def save_grid(images: Float[Tensor, "n c h w"], columns: int, path: Path) -> Path:
    """Write images in [-1, 1] as a grid, row by row, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = to_uint8(images.detach().cpu()).float() / 255
    zoom = -(-SMALLEST // pixels.shape[-1])
    pixels = pixels.repeat_interleave(zoom, dim=-1).repeat_interleave(zoom, dim=-2)
    save_image(make_grid(pixels, nrow=columns, padding=2, pad_value=0.5), path)
    return path


def save_curves(log: Path, path: Path) -> Path:
    """Draw the logged squared errors, and quality where it was measured, over images seen; return the path."""
    rows = [json.loads(line) for line in Path(log).read_text().splitlines()]
    errors = [name for name in ("loss_u", "loss_v") if any(name in row for row in rows)]
    distances = sorted({name for row in rows for name in row if name.startswith("fd_")})
    panels = [("mean squared error", errors, "log")] + [("Frechet distance", distances, "log")] * bool(distances)
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, (title, names, scale) in zip(axes[0], panels, strict=True):
        for name in names:
            points = [(row["images"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, label=name)
        axis.set(title=title, xlabel="images seen", yscale=scale)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return Path(path)
