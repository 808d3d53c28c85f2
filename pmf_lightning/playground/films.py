"""Films of a walk: GIF by Pillow, mp4 by ffmpeg where there is one, and a strip of all frames as PNG."""

import shutil
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from pmf_lightning.utils.errors import UserError

Frames = UInt8[Tensor, "n c h w"]
SMALLEST = 256  # pixels along a side of a film: digits of 32 pixels are hard to see


def ffmpeg() -> str | None:
    """Return the program that writes mp4: of the package imageio-ffmpeg, or the machine's; None without one."""
    if find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        with suppress(RuntimeError):  # on platforms for which the package has no program
            return imageio_ffmpeg.get_ffmpeg_exe()
    return shutil.which("ffmpeg")


def formats() -> list[str]:
    """Return the formats that can be written here."""
    return ["gif", *(["mp4"] if ffmpeg() else []), "png"]


def save_film(frames: Frames, path: Path, per_second: int = 24) -> Path:
    """Write the frames in the format of the suffix (.gif, .mp4 or .png, a strip); return the path.

    Raises UserError for mp4 without ffmpeg, or if ffmpeg fails.
    """
    match path.suffix:
        case ".png":
            _strip(frames).save(path)
        case ".gif":
            first, *rest = [
                Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in _enlarged(frames)
            ]
            first.save(path, save_all=True, append_images=rest, duration=round(1000 / per_second), loop=0)
        case _:
            _save_mp4(_enlarged(frames), path, per_second)
    return path


def _enlarged(frames: Frames) -> UInt8[np.ndarray, "n height width colours"]:
    """Return frames of at least ``SMALLEST`` pixels by whole factors; both sides are even, as mp4 needs them."""
    zoom = -(-SMALLEST // frames.shape[-1])
    zoom += zoom * frames.shape[-1] % 2
    large = frames.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    return large[:, : 1 if len(large[0]) < 3 else 3].permute(0, 2, 3, 1).numpy()


def _strip(frames: Frames) -> Image.Image:
    """Return all frames in rows of twelve."""
    grid = make_grid(frames[:, : 1 if frames.shape[1] < 3 else 3], nrow=min(12, len(frames)), padding=2, pad_value=127)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def _save_mp4(frames: UInt8[np.ndarray, "n height width colours"], path: Path, per_second: int) -> None:
    program = ffmpeg()
    if program is None:
        raise UserError("mp4: no ffmpeg is here; pip install imageio-ffmpeg, or choose gif")
    _, height, width, channels = frames.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "gray" if channels == 1 else "rgb24", "-s", f"{width}x{height}"]
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart"]
    call = [program, "-y", "-loglevel", "error", *raw, "-r", str(per_second), "-i", "-", *coded, str(path)]
    done = subprocess.run(call, input=np.ascontiguousarray(frames).tobytes(), capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"mp4: ffmpeg fails ({done.stderr.decode(errors='replace').strip()[-200:]}); choose gif")
