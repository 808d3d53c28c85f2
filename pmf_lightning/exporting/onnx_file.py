"""Write a generator as an ONNX file by torch.export, and compare it with torch in ONNX Runtime.

The graph takes unit noise and scales it. Its batch is dynamic. Guidance enters as one number per image, where the
network or a second evaluation of it uses guidance in one step.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pmf_lightning.config.compose import one_line
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import image_noise, noise_shape
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

INSTALL = "pip install 'pmf_lightning[onnx]'"
MODEL, ABOUT, EXAMPLE = "model.onnx", "model.json", "example.npz"
OPSET = 18
SAME = 1e-5  # largest difference of ONNX Runtime from torch, relative to the largest value
PARTS = ("sampler", "network")
GUIDANCE = ("omega", "t_min", "t_max")
MOST_BYTES = 2 * 10**9  # of the weights: an ONNX file is one message of protobuf, which ends at 2 GiB
_BATCH = torch.export.Dim("batch")
_SHOWN = 3  # images of the example; another batch than that of the export


USAGE = """```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
inputs = dict(np.load("FOLDER/example.npz"))  # model.json describes them
images = inputs.pop("images")
(again,) = session.run(None, inputs)  # the same images
```"""


@dataclass(frozen=True)
class Input:
    """An input of the graph: what it means, and its range for a user interface."""

    meaning: str
    default: Any = None
    range: tuple[Number, Number] | None = None


class OneStep(nn.Module):
    """One step of the sampler of a model, from unit noise at t=1 to the image at t=0.

    ``inputs`` describes its arguments by name, in order. The samplers are those of ``generate``.
    """

    def __init__(self, module: GenerativeModule):
        super().__init__()
        self.network, self.objective = module.network, module.objective
        judged, self.kind = module.config["sampling"], module.objective.samplers[0]
        self.omega, self.interval = judged["omega"], (judged["t_min"], judged["t_max"])
        classes, scale = module.network.classes, module.objective.noise_scale
        self.inputs = {
            "noise": Input(f"unit noise [batch, channels, height, width]; the graph scales it by {scale:g}"),
            "label": Input(f"class [batch], 0 to {classes - 1}", 0, (0, classes - 1)),
        }
        self.inputs |= _guidance(module, self._names(module))
        self.guided = "omega" in self.inputs
        self.styles = {name: value[0] for name, value in self.objective.sampling_conditions(0, 0, 1).items()}
        for name, value in self.styles.items():
            self.inputs[name] = Input(f"random condition [batch, {len(value)}] of integers", value.tolist())

    def _names(self, module: GenerativeModule) -> tuple[str, ...]:
        """Return the names of the inputs of guidance."""
        if module.network.classes <= 1:
            return ()
        if self.kind == "average":
            return tuple(name for name in GUIDANCE if name in module.config["conditions"])
        twice = self.kind != "one_step" and self.objective.nfe_per_velocity(1.0, 2.0, *self.interval) == 2
        return GUIDANCE[:1] if twice or self.kind == "one_step" else ()

    def forward(self, noise: Tensor, label: Tensor, *rest: Tensor) -> Tensor:
        """Return images in about [-1, 1], or normalised latents."""
        given = dict(zip(list(self.inputs)[2:], rest, strict=True))
        z, ones = self.objective.noise_scale * noise, torch.ones_like(noise[:, 0, 0, 0])
        omega = given.get("omega", ones * self.omega)
        if self.kind == "one_step":
            more = {name: given[name] for name in self.styles}
            return self.objective.one_step(self.network, z, label, omega, **more)
        if self.kind == "average":
            ends = (given.get(name, ones * end) for name, end in zip(("t_min", "t_max"), self.interval, strict=True))
            u = self.objective.average_velocity(self.network, z, ones, 0 * ones, omega, *ends, label)
            return z - u
        v = self.objective.ode_velocity(self.network, z, 1.0, label)
        if self.guided:  # v_u + omega (v_c - v_u), as in the objective, where omega is one number
            without = self.objective.ode_velocity(self.network, z, 1.0, torch.full_like(label, self.network.classes))
            v = without + omega[:, None, None, None] * (v - without)
        return z - v


class Velocity(nn.Module):
    """One evaluation of the network: the velocity of a sampler, for loops of one's own.

    "average" samplers step z <- z - (t - r) u(z, r, t); others solve dz/dt = v(z, t) from t=1 to 0.
    """

    def __init__(self, module: GenerativeModule):
        super().__init__()
        self.network, self.objective = module.network, module.objective
        self.average = module.objective.samplers[0] == "average"
        judged, classes = module.config["sampling"], module.network.classes
        self.fixed = {name: judged[name] for name in GUIDANCE}
        scale = module.objective.noise_scale
        self.inputs = {
            "z": Input(f"noisy images [batch, channels, height, width]; at t=1 noise of standard deviation {scale:g}"),
            "t": Input("time [batch]; t=1 is noise, t=0 the image", 1.0, (0.0, 1.0)),
            "label": Input(f"class [batch], 0 to {classes}; {classes} means none", 0, (0, classes)),
        }
        if self.average:
            self.inputs["r"] = Input("end of the step [batch], at most t", 0.0, (0.0, 1.0))
            self.inputs |= _guidance(module, [name for name in GUIDANCE if name in module.config["conditions"]])

    def forward(self, z: Tensor, t: Tensor, label: Tensor, *rest: Tensor) -> Tensor:
        """Return u(z, r, t), or v(z, t) without guidance."""
        if self.average:
            given = dict(zip(list(self.inputs)[3:], rest, strict=True))
            guidance = (given.get(name, torch.ones_like(t) * value) for name, value in self.fixed.items())
            return self.objective.average_velocity(self.network, z, t, given["r"], *guidance, label)
        return self.objective.ode_velocity(self.network, z, t, label)


def _guidance(module: GenerativeModule, names: Sequence[str]) -> dict[str, Input]:
    """Return the inputs of guidance that are called ``names``."""
    judged = module.config["sampling"]
    end = "end of the guidance interval [batch]; t=1 is noise"
    known = {
        "omega": Input("guidance scale [batch], 1 or more", judged["omega"], (1.0, 10.0)),
        "t_min": Input(end, judged["t_min"], (0.0, 1.0)),
        "t_max": Input(end, judged["t_max"], (0.0, 1.0)),
    }
    return {name: known[name] for name in names}


def write(
    folder: Path, module: GenerativeModule, part: str = "sampler", opset: int = OPSET, tolerance: float = SAME
) -> dict[str, Any]:
    """Write model.onnx, model.json and example.npz into ``folder``; return the contents of model.json.

    The graph is exported with a batch of 2, and compared with torch in ONNX Runtime at a batch of 3, which the example
    holds. Raises UserError without the packages, for a part that the model does not have, for a model that is too large
    or cannot be exported, or for a difference above ``tolerance``.
    """
    check_packages()
    graph = graph_of(module, part)
    if (size := sampled_bytes(module)) > MOST_BYTES:
        raise UserError(f"format=onnx: the model has {size / 1e9:.1f} GB, and an ONNX file holds 2 GB at most")
    example = arguments(graph, module, _SHOWN)
    with torch.no_grad():
        images = graph(*example.values())
    with _as_one_line(opset):
        export_graph(graph, arguments(graph, module, 1), folder / MODEL, opset)
        found = run(folder / MODEL, example)
    difference = float((found - images).abs().max() / max(1.0, float(images.abs().max())))
    if not difference <= tolerance:
        raise UserError(f"format=onnx: ONNX Runtime differs from torch by {difference:.2g}; set another onnx.opset")
    np.savez(folder / EXAMPLE, **{name: value.numpy() for name, value in example.items()}, images=images.numpy())
    about = describe(graph, module, part, opset, difference)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return about


@contextlib.contextmanager
def _as_one_line(opset: int) -> Iterator[None]:
    """Turn the many errors of the exporter and of ONNX Runtime into a UserError; those of the disk stay."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        why = shorten(one_line(error), 200, placeholder=" ...")
        raise UserError(
            f"onnx.opset={opset}: this model cannot be exported so ({type(error).__name__}: {why}); "
            f"set {f'onnx.opset={OPSET}' if opset != OPSET else 'another onnx.opset'}"
        ) from error


def sampled_bytes(module: GenerativeModule) -> int:
    """Return the bytes of the weights in float32, without the heads after the first, which only training uses."""
    first = next(iter(module.network.heads), "") if hasattr(module.network, "heads") else ""
    state = module.network.state_dict()
    kept = (value for name, value in state.items() if not name.startswith("heads.") or f"heads.{first}." in name)
    return sum(4 * value.numel() for value in kept)


def graph_of(module: GenerativeModule, part: str) -> OneStep | Velocity:
    """Return the module that is exported; raises UserError for an unknown part."""
    if part not in PARTS:
        raise UserError(f"onnx.part={part}: give one of {', '.join(PARTS)}")
    if part == "network" and module.objective.samplers[0] == "one_step":
        raise UserError("onnx.part=network: this model makes images in one evaluation; take onnx.part=sampler")
    return (OneStep if part == "sampler" else Velocity)(module).eval()


def arguments(graph: OneStep | Velocity, module: GenerativeModule, count: int) -> dict[str, Tensor]:
    """Return inputs of ``count`` images: the noise of seed 0, classes in turn and the settings of the evaluation."""
    network = module.network
    found: dict[str, Tensor] = {}
    styles = module.objective.sampling_conditions(0, 0, count)
    for name, about in graph.inputs.items():
        if name in ("noise", "z"):
            scale = 1.0 if name == "noise" else module.objective.noise_scale
            found[name] = scale * image_noise(0, 0, count, noise_shape(network))
        elif name == "label":
            found[name] = torch.arange(count) % network.classes
        elif name in styles:
            found[name] = styles[name]
        else:
            found[name] = torch.full((count,), float(about.default))
    return found


def export_graph(graph: nn.Module, inputs: Mapping[str, Tensor], file: Path, opset: int) -> None:
    """Export a module with a dynamic batch, in one file."""
    sizes, named = [{0: _BATCH} for _ in inputs], _named(graph)
    shapes = (*sizes[:named], *([tuple(sizes[named:])] if sizes[named:] else []))  # the rest is one argument
    with _quiet():
        program = torch.onnx.export(
            graph,
            tuple(torch.cat((value, value)) for value in inputs.values()),  # a size of 1 would be taken as fixed
            dynamo=True,
            input_names=list(inputs),
            output_names=["images"],
            dynamic_shapes=shapes,
            opset_version=opset,
            optimize=True,
            verbose=False,
        )
        program.save(str(file), external_data=False)
    _without_notes(file)


def _without_notes(file: Path) -> None:
    """Remove the exporter's notes, which name files of this machine and are a tenth of a small model."""
    import onnx

    model = onnx.load(file)
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.value_info, model.graph, model):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    onnx.save(model, file)


def _named(graph: nn.Module) -> int:
    """Return the number of arguments of ``forward`` before the rest."""
    return 3 if isinstance(graph, Velocity) else 2


def run(file: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run an ONNX file in ONNX Runtime on one thread of the CPU; raises UserError without the package."""
    runtime = check_packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(images)


def describe(
    graph: OneStep | Velocity, module: GenerativeModule, part: str, opset: int, difference: float
) -> dict[str, Any]:
    """Return what a user of the file needs to know."""
    inputs = {
        name: {"meaning": one.meaning, "default": one.default, "range": one.range and list(one.range)}
        for name, one in graph.inputs.items()
    }
    latent = module.decoder is not None
    return {
        "format": "pmf_lightning onnx",
        "model": module.config["name"],
        "part": part,
        "opset": opset,
        "inputs": inputs,
        "output": "images: normalised latents" if latent else "images: in about [-1, 1], not clipped",
        "channels": module.network.channels,
        "resolution": module.network.resolution,
        "classes": module.network.classes,
        "class_names": None if module.class_names is None else list(module.class_names),
        "difference_from_torch": difference,
    }


def check_packages() -> Any:
    """Return the module onnxruntime; UserError if a package of the extra is missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise UserError(f"format=onnx: it needs onnx, onnxscript and onnxruntime: {INSTALL}") from error
    _ = onnx, onnxscript
    return onnxruntime


@contextlib.contextmanager
def _quiet():
    """Silence the exporter, which prints its progress and warns of its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
