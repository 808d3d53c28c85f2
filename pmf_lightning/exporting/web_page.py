"""Write a static page that draws a model's images in a browser, with onnxruntime-web from its npm package."""

import shutil
from pathlib import Path

from pmf_lightning.exporting import onnx_file
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import image_noise, noise_shape
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

PACKAGE = "onnxruntime-web"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of its folder dist
PAGE = ("index.html", "style.css", "app.js")
CORNERS = "corners.bin"  # unit noise of images 0 to 3 of seed 0, float32


def write(folder: Path, module: GenerativeModule, runtime: str | None, most_mb: Number, opset: int) -> None:
    """Write the page into ``folder``; ``runtime`` is that of ``find_runtime``.

    Raises UserError for a model of latents, one of several steps, or one that is larger than ``most_mb`` megabytes.
    """
    source = find_runtime(runtime)
    if module.decoder is not None:
        raise UserError("format=web: this model makes latents, and a page has no decoder; give a model of pixels")
    if (steps := module.config["sampling"]["steps"]) > 1:
        raise UserError(
            f"format=web: this model makes an image in {steps} steps, and a page takes one; give a model of one step, "
            "or set format=onnx onnx.part=network and write the loop yourself"
        )
    check_size(onnx_file.sampled_bytes(module), most_mb)
    onnx_file.write(folder, module, opset=opset)
    (folder / onnx_file.EXAMPLE).unlink()
    check_size((folder / onnx_file.MODEL).stat().st_size, most_mb)
    (folder / CORNERS).write_bytes(image_noise(0, 0, 4, noise_shape(module.network)).numpy().astype("<f4").tobytes())
    for name in PAGE:
        shutil.copyfile(Path(__file__).with_name("web") / name, folder / name)
    (folder / "ort").mkdir()
    for name in RUNTIME:
        shutil.copyfile(source / name, folder / "ort" / name)
    for name in ("LICENSE", "package.json"):
        if (source.parent / name).is_file():
            shutil.copyfile(source.parent / name, folder / "ort" / name)


def find_runtime(folder: str | None) -> Path:
    """Return the folder ``dist`` of onnxruntime-web: in ``folder``, or in node_modules here; UserError if missing."""
    start = Path("node_modules") / PACKAGE if folder is None else Path(folder).expanduser()
    for place in (start / "dist", start, start / PACKAGE / "dist", start / "node_modules" / PACKAGE / "dist"):
        if all((place / name).is_file() for name in RUNTIME):
            return place
    missing = f"web.runtime={folder}: it is not" if folder is not None else f"web.runtime: {start} is not"
    raise UserError(f"{missing} the npm package {PACKAGE}; npm install {PACKAGE}, then run this in the same folder")


def check_size(size: int, most_mb: Number) -> None:
    """Raise UserError, naming the size in bytes, for a model that is too large for a page."""
    if size > most_mb * 1e6:
        raise UserError(
            f"web.most_mb={most_mb:g}: the model has {size / 1e6:,.1f} MB, too large for a page; export a smaller one, "
            "or raise web.most_mb"
        )
