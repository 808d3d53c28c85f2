"""Export a loaded model in one of the formats of ``convert format=``, with its card."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pmf_lightning.exporting import diffusers_folder, onnx_file, web_page
from pmf_lightning.exporting.card import CARD, UNKNOWN, RunFacts, card, write_card
from pmf_lightning.pipeline.images import check_generates
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.utils.cache import atomic_folder
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.precision import Number

FORMATS = ("safetensors", "diffusers", "onnx", "web")


@dataclass(frozen=True)
class ExportRequest:
    """What is exported, and how.

    Args:
        format: one of FORMATS but the first, which is the weights folder of pipeline/weights_folder.py.
        source: the model in errors, such as "in=runs/digits".
        facts: of its run, for the card.
        licence: of the weights, for the card.
        command: the command that exports it, for the card.
        vae: folder or file of the decoder to include (diffusers); None: none.
        part, opset: of ONNX files (exporting/onnx_file.py).
        runtime, most_mb: of a page (exporting/web_page.py).
    """

    format: str
    source: str
    facts: RunFacts
    licence: str = UNKNOWN
    command: str | None = None
    vae: str | None = None
    part: str = onnx_file.PARTS[0]
    opset: int = onnx_file.OPSET
    runtime: str | None = None
    most_mb: Number = 20


def takes_one_step(format: str, part: str) -> bool:
    """Whether an export makes an image in one step, whatever the model's own number of steps."""
    return format == "onnx" and part == onnx_file.PARTS[0]


def check_format(name: str | None) -> None:
    """Raise UserError for an unknown format."""
    if name not in (None, *FORMATS):
        raise UserError(f"format={name}: there is no such format; {suggestions(str(name), FORMATS)}")


def is_export(folder: Path) -> bool:
    """Whether ``folder`` is one that this module wrote, by its card."""
    try:
        return "library_name: pmf_lightning" in (folder / CARD).read_text()[:1000]
    except (OSError, UnicodeDecodeError):
        return False


def export(out: Path, module: GenerativeModule, request: ExportRequest) -> None:
    """Write the folder ``out`` atomically; an older export there is replaced.

    Raises UserError for a model that makes no images, or without the packages of the format.
    """
    check_generates(request.source, module)
    with atomic_folder(out) as draft:
        usage = _WRITERS[request.format](draft, out, module, request)
        steps = 1 if takes_one_step(request.format, request.part) else None
        text = card(module, request.facts, usage, request.licence, request.command, steps)
        write_card(draft, text, request.facts)


def _diffusers(draft: Path, out: Path, module: GenerativeModule, request: ExportRequest) -> str:
    if request.vae is not None:
        if module.decoder is None:
            raise UserError(f"vae={request.vae}: this model generates pixels and has no decoder; leave it out")
        module.decoder = replace(module.decoder, weights=request.vae)
        module.decoder.load()
    diffusers_folder.write(draft, module, with_vae=request.vae is not None)
    return diffusers_folder.usage(module, out.name)


def _onnx(draft: Path, out: Path, module: GenerativeModule, request: ExportRequest) -> str:
    draft.mkdir()
    onnx_file.write(draft, module, request.part, request.opset)
    return onnx_file.USAGE.replace("FOLDER", out.name)


def _web(draft: Path, out: Path, module: GenerativeModule, request: ExportRequest) -> str:
    draft.mkdir()
    web_page.write(draft, module, request.runtime, request.most_mb, request.opset)
    return f"```bash\npython -m http.server --directory {shlex.quote(out.name)}   # or any host of static files\n```"


_WRITERS: Mapping[str, Callable[[Path, Path, GenerativeModule, ExportRequest], str]] = {
    "diffusers": _diffusers,
    "onnx": _onnx,
    "web": _web,
}
