"""Models of the playground: a generator with its averages by name, from any path that ``sample`` takes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pmf_lightning.pipeline.averages import find_average
from pmf_lightning.pipeline.images import check_generates, prepare_decoder
from pmf_lightning.pipeline.loading import load, load_every_average
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

MOST = 4  # models on a page, and columns of Compare


@dataclass(eq=False)
class PlayModel:
    """A generator with its sets of weights.

    Args:
        name: what the page calls it.
        module: the LightningModule in evaluation mode, on its device.
        sets: weights by the name of their average; an empty entry is what ``module`` already holds.
        average: the average to use if none is chosen.
    """

    name: str
    module: GenerativeModule
    sets: Mapping[str, Mapping[str, Tensor]]
    average: str
    _held: str | None = field(default=None, repr=False)

    @property
    def averages(self) -> list[str]:
        """Names of the averages, the one of evaluation first."""
        return [self.average, *(name for name in self.sets if name != self.average)]

    @property
    def class_names(self) -> list[str]:
        """The name of every class; its number without names."""
        names, classes = self.module.class_names, self.module.network.classes
        return [str(number) for number in range(classes)] if names is None else list(names)

    def using(self, average: str | None = None) -> GenerativeModule:
        """Return the module with the weights ``average`` (None: those of evaluation); not for two threads at a time."""
        name = average or self.average
        if name != self._held:
            self.module.network.load_state_dict(self.sets[name], strict=False)
            self.module.average = self._held = name
        return self.module


def load_models(
    paths: Sequence[str],
    ema: str | Number | None = None,
    trust: Sequence[str] = (),
    device: str = "cpu",
    decoder: str | None = None,
) -> list[PlayModel]:
    """Load at most four generators; ``decoder`` is the SD-VAE of latent models, by path.

    Raises UserError for more than four, a path without weights, an unknown average, or a model that makes no images.
    """
    if not 1 <= len(paths) <= MOST:
        raise UserError(f"ckpt=[{', '.join(paths)}]: {len(paths)} checkpoints; a page compares 1 to {MOST}")
    models = [_load(path, ema, trust, decoder) for path in paths]
    for model, name in zip(models, _different(model.name for model in models), strict=True):
        model.name = name
        model.module.to(device)
    return models


def _load(path: str, ema: str | Number | None, trust: Sequence[str], decoder: str | None) -> PlayModel:
    module, sets = load_every_average(path, trust)
    if len(sets) == 1 and ema is not None:  # of a released file with several sets, another may be meant
        module = load(path, ema, trust)
        sets = {module.average: {}}
    average = next(iter(sets))
    if len(sets) > 1:
        average = find_average(module.config["sampling"]["ema"] if ema is None else ema, sets, module.config)
    check_generates(f"ckpt={path}", module)
    if module.decoder is not None:
        prepare_decoder(module, decoder)
    return PlayModel(_name(Path(path), module.config["name"]), module, sets, average)


def _name(path: Path, model: str) -> str:
    """Return a short name: the model's, and the run directory or file if that says more."""
    parts = [part for part in path.parts if part not in ("checkpoints", "last.ckpt")]
    tail = parts[-1] if parts else model
    return tail if model in tail else f"{model} ({tail})"


def _different(names: Iterable[str]) -> list[str]:
    """Return the names, numbered where one repeats."""
    found: list[str] = []
    for name in names:
        again = [f"{name} #{number}" for number in range(2, MOST + 1)]
        found.append(next(one for one in (name, *again) if one not in found))
    return found
