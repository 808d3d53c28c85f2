"""Search space of a guidance search: averages, guidance scales, intervals, steps and sampling methods."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config import validate
from pmf_lightning.config.compose import choices, compose
from pmf_lightning.pipeline.averages import find_average
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

Interval = tuple[Number, Number]  # t_min, t_max


@dataclass(frozen=True)
class SamplingSetting:
    """Sampling setting: average of the weights, guidance ``omega`` within ``interval``, steps and method."""

    ema: str
    omega: Number
    interval: Interval
    steps: int
    sampler: str

    @property
    def options(self) -> dict[str, Number | str]:
        """The options of ``generate``."""
        t_min, t_max = self.interval
        return {"steps": self.steps, "sampler": self.sampler, "omega": self.omega, "t_min": t_min, "t_max": t_max}

    @property
    def arguments(self) -> list[str]:
        """The options as command-line arguments."""
        return [f"ema={self.ema}", *(f"{name}={show(value)}" for name, value in self.options.items())]

    def __str__(self) -> str:
        low, high = map(show, self.interval)
        return f"ema {self.ema}, omega {show(self.omega)} in [{low}, {high}], {self.steps} x {self.sampler}"


@dataclass(frozen=True)
class SearchSpace:
    """Values to try for each field of ``SamplingSetting``."""

    ema: tuple[str, ...]
    omega: tuple[Number, ...]
    interval: tuple[Interval, ...]
    steps: tuple[int, ...]
    sampler: tuple[str, ...]

    def grid(self) -> list[SamplingSetting]:
        """Return every point; the average changes slowest, because a change loads weights."""
        points = product(self.ema, self.sampler, self.steps, self.interval, self.omega)
        return [
            SamplingSetting(ema, omega, interval, steps, sampler) for ema, sampler, steps, interval, omega in points
        ]

    def along(self, name: str, point: SamplingSetting) -> list[SamplingSetting]:
        """Return the points with all values of the field ``name`` and otherwise the values of ``point``."""
        return [replace(point, **{name: value}) for value in getattr(self, name)]

    def nearest(self, point: SamplingSetting) -> SamplingSetting:
        """Return the grid point nearest to ``point``, for each field independently."""
        chosen = {field.name: _nearest(getattr(self, field.name), getattr(point, field.name)) for field in fields(self)}
        return SamplingSetting(**chosen)

    def __len__(self) -> int:
        count = 1
        for values in astuple(self):
            count *= len(values)
        return count


def show(value: Number | str) -> str:
    """Format a number in its shortest form."""
    return value if isinstance(value, str) else f"{value:g}"


def _nearest(values: Sequence, target):
    if target in values or isinstance(target, str):
        return target if target in values else values[0]
    numbers = target if isinstance(target, tuple) else (target,)

    def distance(value) -> float:
        own = value if isinstance(value, tuple) else (value,)
        return float(sum(abs(a - b) for a, b in zip(own, numbers, strict=True)))

    return min(values, key=distance)


KEYS = ("omega", "intervals", "ema", "steps", "sampler")  # keys of the command line, and of ``search`` in a recipe


def make_axes(cfg: DictConfig, module: GenerativeModule, averages: Sequence[str]) -> SearchSpace:
    """Return the search space from ``cfg``; defaults are the model's recipe, then its sampling options.

    ``averages`` are the names of the checkpoint's sets of weights; by default all but "raw" are tried. Raises UserError
    for values that cannot be used for sampling, naming key and value.
    """
    known = recipe(module.config, module.objective.search_preset)
    given = {key: known.get(key) if cfg[key] is None else _plain(cfg[key]) for key in KEYS}
    if given["omega"] is None or given["intervals"] is None:
        missing = [key for key in ("omega", "intervals") if given[key] is None]
        raise UserError(
            f"{missing[0]}=null: the checkpoint and its recipe have no values to try; give lists, such as "
            "omega=[1,2,3] intervals=[[0,1],[0.1,0.7]]"
        )
    if module.network.classes == 1:  # as in training: there is nothing to guide towards
        if cfg["omega"] is not None and set(_each("omega", _plain(cfg["omega"]), float)) != {1.0}:
            raise UserError(f"omega={cfg.omega}: the model has one class, so guidance has no meaning; leave omega= out")
        given |= {"omega": [1], "intervals": [[0, 1]]}
    sampling = module.config["sampling"]
    named = given["ema"] or [name for name in averages if name != "raw"] or list(averages)
    default_sampler = sampling.get("sampler") or module.objective.samplers[0]
    axes = SearchSpace(
        ema=tuple(find_average(name, averages, module.config) for name in _each("ema", named, str)),
        omega=_each("omega", given["omega"], float),
        interval=tuple(_interval(pair) for pair in _pairs(given["intervals"])),
        steps=_each("steps", given["steps"] or sampling["steps"], int),
        sampler=_each("sampler", given["sampler"] or default_sampler, str),
    )
    _check(axes, module)
    return axes


def recipe(config: Mapping[str, Any], preset: str | None) -> Mapping[str, Any]:
    """Return the ``search`` block of a checkpoint's configuration, its preset or the objective's ``preset``, or {}."""
    if config.get("search"):
        return config["search"]
    name = config.get("name")
    if name in choices("model"):
        return _plain(compose([f"model={name}"]).get("search")) or {}
    return _plain(compose([f"model={preset}"]).get("search")) if preset else {}


def default_point(module: GenerativeModule, axes: SearchSpace) -> SamplingSetting:
    """Return the grid point nearest to the model's own sampling options."""
    sampling = module.config["sampling"]
    sampler = sampling.get("sampler") or module.objective.samplers[0]
    interval = (sampling["t_min"], sampling["t_max"])
    return axes.nearest(SamplingSetting(sampling["ema"], sampling["omega"], interval, sampling["steps"], sampler))


def _check(axes: SearchSpace, module: GenerativeModule) -> None:
    for point in axes.grid():
        validate.guidance(**{name: value for name, value in point.options.items() if name != "sampler"})
        validate.sampler(point.sampler, module.objective.samplers, point.steps)
    if len(set(axes.grid())) != len(axes):
        raise UserError(f"{_doubled(axes)}: a value is listed twice; give each once")


def _doubled(axes: SearchSpace) -> str:
    for key, values in (("omega", axes.omega), ("intervals", axes.interval), ("ema", axes.ema), ("steps", axes.steps)):
        if len(set(values)) != len(values):
            return f"{key}=[{','.join(map(_text, values))}]"
    return f"sampler=[{','.join(axes.sampler)}]"


def _text(value) -> str:
    return f"[{','.join(map(show, value))}]" if isinstance(value, tuple) else show(value)


def _each(key: str, values: Any, kind: type) -> tuple:
    """Convert one value or a list of values to a tuple of one kind; raises UserError."""
    values = values if isinstance(values, list) else [values]
    try:
        if not values or any(isinstance(value, bool | list | dict | None) for value in values):
            raise ValueError
        made = tuple(kind(value) for value in values)
        if kind is not str and any(own != float(given) for own, given in zip(made, values, strict=True)):
            raise ValueError  # 1.5 steps
    except (TypeError, ValueError):
        what = {str: "names", int: "integers", float: "numbers"}[kind]
        raise UserError(f"{key}={values}: give a list of {what}, such as {key}={_EXAMPLES[key]}") from None
    return tuple(int(value) if kind is float and value.is_integer() else value for value in made)


_EXAMPLES = {"omega": "[1,2,3]", "ema": "[500k,1000k]", "steps": "[1,2]", "sampler": "[heun,euler]"}


def _pairs(values: Any) -> list:
    """Return a list of intervals, also if only one interval is given."""
    is_pair = isinstance(values, list) and len(values) == 2 and not any(isinstance(value, list) for value in values)
    return [values] if is_pair else values if isinstance(values, list) and values else [values]


def _interval(pair: Any) -> tuple[Number, Number]:
    fits = isinstance(pair, list) and len(pair) == 2
    if not fits or any(isinstance(value, bool) or not isinstance(value, int | float) for value in pair):
        raise UserError(
            f"intervals={pair}: each is a pair [t_min,t_max], such as intervals=[[0.1,0.7],[0,1]]; t=1 is noise"
        )
    return pair[0], pair[1]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
