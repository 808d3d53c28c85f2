"""Features of images in all encoders of a battery, in one pass over the images, split over the ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from pmf_lightning.data.transforms import to_float, to_uint8
from pmf_lightning.encoders.base import Features, full_precision
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.evaluation.moments import FeatureStatistics, Moments, measured_in_chunks
from pmf_lightning.utils.errors import UserError

PIXELS = ("float", "uint8")
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
# Called with the features by encoder of the images number first, first + 1, ... of this rank
Store = Callable[[Mapping[str, Float[Tensor, "b d"]], int], None]


class BatteryEncoder:
    """Encoder of images by a battery, in fixed pixels and precision, on a device.

    Args:
        battery: the encoders, on ``device``.
        widths: the expected number of features by name.
        pixels: "float" clamps float images to [-1, 1]; "uint8" also rounds them to levels. uint8 images are exact.
        precision: "float32", or "bfloat16" for autocast.
    """

    def __init__(self, battery: Battery, widths: Mapping[str, int], pixels: str, precision: str, device: torch.device):
        self.battery, self.widths, self.pixels, self.precision = battery, dict(widths), pixels, precision
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Shaped[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b d"]]:
        """Return the features by name, float32; UserError if an encoder makes others than expected."""
        images = images.to(self.device)
        if images.dtype != torch.uint8 and self.pixels == "uint8":
            images = to_uint8(images)
        pixels = to_float(images) if images.dtype == torch.uint8 else images.float().clamp(-1, 1)
        with self._context():
            found = self.battery.encode(pixels.contiguous())
        for name, width in self.widths.items():
            if found[name].shape[1] != width:
                raise UserError(
                    f"battery.reference: moments of {width} features for {name}, the encoder makes "
                    f"{found[name].shape[1]}; make it again with make_stats battery="
                )
        return {name: found[name].float() for name in self.widths}

    @contextmanager
    def _context(self) -> Iterator[None]:
        half = self.precision != "float32"
        with full_precision(self.device):
            if not half:
                yield
                return
            with torch.autocast(self.device.type, getattr(torch, self.precision)):
                yield

    def measure(
        self,
        images: Callable[[int, int], Shaped[Tensor, "b c h w"]],
        n: int,
        batch_size: int,
        stored_rows: Int64[Tensor, " m"] | str | None = None,
        title: str = "images",
        store: Store | None = None,
    ) -> dict[str, FeatureStatistics]:
        """Return statistics by encoder of images number 0 to n - 1, from ``images(first, end)`` in chunks.

        All ranks must call it. ``stored_rows`` are the numbers of the images whose features are kept, "all" or None.
        """
        moments = {name: Moments(width, 0, stored_rows).to(self.device) for name, width in self.widths.items()}

        def encode(first: int, end: int) -> dict[str, Features]:
            found = self(images(first, end))
            if store is not None:
                store(found, first)
            return {name: Features(values, None) for name, values in found.items()}

        return measured_in_chunks(encode, moments, n, batch_size, title)
