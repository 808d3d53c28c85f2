"""From a configuration and a checkpoint to the values that a search tries."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pmf_lightning import checks
from pmf_lightning.averages import find_average
from pmf_lightning.config import choices, compose
from pmf_lightning.errors import UserError
from pmf_lightning.guidance_search.points import Axes, Point, show
from pmf_lightning.module import GenerativeModule
from pmf_lightning.precision import Number

KEYS = ("omega", "intervals", "ema", "steps", "method")  # of the command line, and of ``search`` in a recipe
_PRESETS = {  # whose recipe it is, by objective; those of pMF and iMF share one class
    ("PixelMeanFlow", "x"): "pmf_b16",
    ("PixelMeanFlow", "u"): "imf_b2",
    "JiT": "jit_b16",
    "Drifting": "drifting_b16",
}


def make_axes(cfg: DictConfig, module: GenerativeModule, averages: Sequence[str]) -> Axes:
    """Return what is tried: what ``cfg`` sets, else what the model's recipe says, else as the model is judged.

    ``averages`` are the names of the sets of weights that the checkpoint has: where nothing else is said, all of them
    but "raw". Raises UserError for values that cannot be sampled with, naming key and value.
    """
    known = recipe(module.config)
    given = {key: known.get(key) if cfg[key] is None else _plain(cfg[key]) for key in KEYS}
    if given["omega"] is None or given["intervals"] is None:
        missing = [key for key in ("omega", "intervals") if given[key] is None]
        raise UserError(
            f"{missing[0]}=null: the checkpoint and its recipe say nothing to try; give lists, such as "
            "omega=[1,2,3] intervals=[[0,1],[0.1,0.7]]"
        )
    judged = module.config["sampling"]
    named = given["ema"] or [name for name in averages if name != "raw"] or list(averages)
    usual = judged.get("method") or module.objective.methods[0]
    axes = Axes(
        ema=tuple(find_average(name, averages, module.config) for name in _each("ema", named, str)),
        omega=_each("omega", given["omega"], float),
        interval=tuple(_interval(pair) for pair in _pairs(given["intervals"])),
        steps=_each("steps", given["steps"] or judged["steps"], int),
        method=_each("method", given["method"] or usual, str),
    )
    _check(axes, module)
    return axes


def recipe(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ``search`` block of a checkpoint's configuration, or of the preset or recipe it was made by; {}."""
    if config.get("search"):
        return config["search"]
    name = config.get("name")
    if name in choices("model"):
        return _plain(compose([f"model={name}"]).get("search")) or {}
    objective = config["objective"]
    kind = objective["_target_"].rpartition(".")[2]
    preset = _PRESETS.get((kind, objective.get("prediction"))) or _PRESETS.get(kind)
    return _plain(compose([f"model={preset}"]).get("search")) if preset else {}


def judged_point(module: GenerativeModule, axes: Axes) -> Point:
    """Return the point of the grid that is nearest to how the model is judged."""
    judged = module.config["sampling"]
    method = judged.get("method") or module.objective.methods[0]
    interval = (judged["t_min"], judged["t_max"])
    return axes.nearest(Point(judged["ema"], judged["omega"], interval, judged["steps"], method))


def _check(axes: Axes, module: GenerativeModule) -> None:
    for point in axes.grid():
        checks.guidance(**{name: value for name, value in point.options.items() if name != "method"})
        checks.method(point.method, module.objective.methods, point.steps)
    if len(set(axes.grid())) != len(axes):
        raise UserError(f"{_doubled(axes)}: a value stands there twice; give each once")


def _doubled(axes: Axes) -> str:
    for key, values in (("omega", axes.omega), ("intervals", axes.interval), ("ema", axes.ema), ("steps", axes.steps)):
        if len(set(values)) != len(values):
            return f"{key}=[{','.join(map(_text, values))}]"
    return f"method=[{','.join(axes.method)}]"


def _text(value) -> str:
    return f"[{','.join(map(show, value))}]" if isinstance(value, tuple) else show(value)


def _each(key: str, values: Any, kind: type) -> tuple:
    """Return one value or a list of them as numbers or names of one kind; UserError."""
    values = values if isinstance(values, list) else [values]
    try:
        if not values or any(isinstance(value, bool | list | dict | None) for value in values):
            raise ValueError
        made = tuple(kind(value) for value in values)
        if kind is not str and any(own != float(given) for own, given in zip(made, values, strict=True)):
            raise ValueError  # 1.5 steps
    except (TypeError, ValueError):
        what = {str: "names", int: "whole numbers", float: "numbers"}[kind]
        raise UserError(f"{key}={values}: give a list of {what}, such as {key}={_EXAMPLES[key]}") from None
    return tuple(int(value) if kind is float and value.is_integer() else value for value in made)


_EXAMPLES = {"omega": "[1,2,3]", "ema": "[500k,1000k]", "steps": "[1,2]", "method": "[heun,euler]"}


def _pairs(values: Any) -> list:
    """Return intervals as a list of them, also where only one is given."""
    alone = isinstance(values, list) and len(values) == 2 and not any(isinstance(value, list) for value in values)
    return [values] if alone else values if isinstance(values, list) and values else [values]


def _interval(pair: Any) -> tuple[Number, Number]:
    fits = isinstance(pair, list) and len(pair) == 2
    if not fits or any(isinstance(value, bool) or not isinstance(value, int | float) for value in pair):
        raise UserError(
            f"intervals={pair}: each is a pair [t_min,t_max], such as intervals=[[0.1,0.7],[0,1]]; t=1 is noise"
        )
    return pair[0], pair[1]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
