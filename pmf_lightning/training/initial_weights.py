"""Weights that a new run starts from (``init_from=``): read them, check that they fit the network, load them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from pmf_lightning.pipeline.checkpoints import RELEASED, load_checkpoint, read_release, weights_file
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.sources import located
from pmf_lightning.training.run_dir import first_process
from pmf_lightning.training.same_run import compare
from pmf_lightning.utils.cache import file_sha256
from pmf_lightning.utils.errors import UserError, options_called, some_of, suggestions
from pmf_lightning.utils.precision import Number
from pmf_lightning.weights import bare, chosen_set, flax, read_tensors, translate

_SHAPING = ("backbone", "objective", "conditions")  # parts of a configuration that change the images of given weights
_SIZES = ("resolution", "channels", "classes", "heads")  # differences that are refused or stated by other means
_MOST_PREFIXES = 8  # in the remedy of an error


@dataclass(frozen=True)
class InitRequest:
    """The weights that a run starts from.

    Args:
        path: a run directory, a checkpoint, a folder written by pmf_lightning.convert, or a released file.
        ema: the average, or the set of a released file; None: the one that the stored run evaluates.
        skip: prefixes of the names of weights that keep the values of the run's seed. A prefix ends at a dot:
            "trunk.1" is not a prefix of "trunk.10.mlp.w1.weight".
        trust: packages of the user whose classes the stored configuration may build.
    """

    path: str
    ema: str | Number | None = None
    skip: Sequence[str] = ()
    trust: Sequence[str] = ()


@dataclass(frozen=True)
class InitialWeights:
    """Description of the loaded weights; run.json and the checkpoints of the run store it.

    Args:
        path: ``init_from`` as it was given.
        file: name of the file with the weights.
        sha256: digest of that file; "" in all processes of a run but the first.
        weights: name of the average or set.
        not_trained: heads of the file that this run does not train; they are not loaded.
        from_seed: the prefixes of ``init_skip``.
    """

    path: str
    file: str
    sha256: str
    weights: str
    not_trained: list[str]
    from_seed: list[str]

    def record(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Found:
    """Contents of a source: ``weights`` by our names, the name of their set, other heads, and a configuration."""

    weights: Mapping[str, Tensor]
    name: str
    other_heads: Sequence[str] = ()
    config: Mapping[str, Any] | None = None


def load(request: InitRequest, module: GenerativeModule) -> list[str]:
    """Load the weights of ``request`` into ``module.network`` and describe them in ``module.init_from``.

    Returns lines to print. Weights of ``request.skip`` keep the values that ``build`` gave them from the seed. Raises
    UserError if the source is missing, damaged, or names foreign code, and, with the names, if any other weight is
    missing, foreign or of another shape. Then the network is unchanged.
    """
    skip = [prefix.strip(".") for prefix in request.skip]
    with options_called(ckpt="init_from", ema="init_ema"):
        found = _read(request, skip, module)
    ours = module.network.state_dict()
    _check_prefixes(skip, [*ours, *found.weights])
    weights, dropped = _without_other_heads(found.weights, ours)
    weights = {name: value for name, value in weights.items() if not _below(name, skip)}
    wanted = {name: value for name, value in ours.items() if not _below(name, skip)}
    _check_fits(request, weights, wanted, module.config["name"])
    module.network.load_state_dict(weights, strict=False)
    file = weights_file(located(request.path))
    digest = file_sha256(file) if first_process() else ""
    dropped = sorted({*dropped, *found.other_heads})
    origin = InitialWeights(request.path, file.name, digest, found.name, dropped, skip)
    module.init_from = origin.record()
    return _lines(origin, found, module.config)


def _read(request: InitRequest, skip: Sequence[str], module: GenerativeModule) -> _Found:
    path = located(request.path)
    if flax.is_release(path) and not skip:  # with other sizes it is read as the preset of its own sizes
        if request.ema is not None:
            raise UserError(f"init_ema={request.ema}: {path} holds one set of weights; leave init_ema out")
        return _Found(read_release(path, OmegaConf.create(module.config)).network, RELEASED)
    if path.is_file() and not flax.is_release(path):
        with _naming_source(request):
            contents = read_tensors(path)
        if not (isinstance(contents, Mapping) and {"state_dict", "config"} <= contents.keys()):
            return _official(contents, request, skip, module)
    stored = load_checkpoint(path, request.ema, request.trust)
    _check_patches(path, stored.network, module)
    return _Found(stored.network.state_dict(), stored.average, config=stored.config)


def _check_patches(path: Path, stored: nn.Module, module: GenerativeModule) -> None:
    """Raise UserError if images have another number of patches: rotary and fixed positions then have no weights."""
    theirs, ours = (getattr(network, "grid", None) for network in (stored, module.network))
    if None in (theirs, ours) or theirs == ours:
        return
    name, side = module.config["name"], module.config["data"]["resolution"]
    raise UserError(
        f"init_from={path}: its images have {theirs} x {theirs} patches, those of {name} at data.resolution={side} "
        f"have {ours} x {ours}; set backbone.patch= so that they are equal"
    )


def _official(contents: object, request: InitRequest, skip: Sequence[str], module: GenerativeModule) -> _Found:
    """Translate the contents of an official PyTorch file for the network of this run."""
    weights = bare(contents, f"official weights {request.path}", request.ema, key="init_ema")
    network = module.network
    without = [name for name in network.state_dict() if _below(name, skip)]
    with _naming_source(request):
        ours, unused = translate(weights, network, without)
    heads = {name[0] for name in unused if re.match(r"[a-z]_(heads|final_layer)\.", name)}
    return _Found(ours, chosen_set(contents, request.ema) or RELEASED, sorted(heads))


@contextmanager
def _naming_source(request: InitRequest) -> Iterator[None]:
    """Begin errors of code that knows no options with the source."""
    try:
        yield
    except UserError as error:
        raise UserError(f"init_from={request.path}: {error}") from error


def _below(name: str, prefixes: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def _check_prefixes(skip: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError for a prefix of no weight."""
    for prefix in skip:
        if not any(_below(name, [prefix]) for name in names):
            parts = (name.split(".") for name in names)
            known = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
            near = suggestions(prefix, known)
            if near.startswith("known"):
                near = f"the first parts of their names are {', '.join(sorted({name.split('.')[0] for name in names}))}"
            raise UserError(f"init_skip=[{prefix}]: no weight has this name or prefix; {near}")


def _without_other_heads(
    weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the weights without those of heads that our network lacks, and the names of these heads."""
    heads = {name: name.split(".")[1] for name in weights if name.startswith("heads.")}
    others = set(heads.values()) - {name.split(".")[1] for name in ours if name.startswith("heads.")}
    return {name: value for name, value in weights.items() if heads.get(name) not in others}, others


def _check_fits(request: InitRequest, weights: Mapping[str, Tensor], ours: Mapping[str, Tensor], model: str) -> None:
    """Raise UserError that lists the weights that are missing, foreign or of another shape."""
    missing = [name for name in ours if name not in weights]
    foreign = [name for name in weights if name not in ours]
    reshaped = [name for name in ours if name in weights and ours[name].shape != weights[name].shape]
    shapes = [f"{name} {list(weights[name].shape)} instead of {list(ours[name].shape)}" for name in reshaped]
    problems = {"missing": missing, "foreign": foreign, "of another shape": shapes}
    said = "; ".join(f"{kind}: {some_of(names, most=4)}" for kind, names in problems.items() if names)
    if not said:
        return
    alone = [_shortest_prefix(names, other) for names, other in ((missing, weights), (foreign, ours))]
    prefixes = list(dict.fromkeys([*alone[0], *alone[1], *(name.rpartition(".")[0] for name in reshaped)]))
    remedy = "choose the model and data that they are of"
    if len(prefixes) <= _MOST_PREFIXES:
        remedy += f", or start these from the seed, init_skip=[{','.join(prefixes)}]"
    raise UserError(f"init_from={request.path}: its weights do not fit model={model} ({said}); {remedy}")


def _shortest_prefix(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return for each name the shortest of its prefixes that is none of a name in ``others``."""
    known = {name[:end] for name in others for end, letter in enumerate(f"{name}.") if letter == "."}
    ends = ((name, [end for end, letter in enumerate(f"{name}.") if letter == "."]) for name in names)
    return [next(name[:end] for end in dots if name[:end] not in known) for name, dots in ends]


def _lines(origin: InitialWeights, found: _Found, config: Mapping[str, Any]) -> list[str]:
    lines = [f"starts from {origin.path}, weights {origin.weights}"]
    if origin.not_trained:
        lines.append(f"not loaded, because this run does not train it: head {', '.join(origin.not_trained)}")
    if origin.from_seed:
        lines.append(f"not loaded, but initialised from the seed: {', '.join(origin.from_seed)}")
    if changed := _changes(found.config, config):
        lines.append(f"options that differ from those of the stored run: {changed}")
    return lines


def _changes(stored: Mapping[str, Any] | None, config: Mapping[str, Any]) -> str:
    """Describe the options of network and objective that differ; the weights then give other images or losses."""
    if stored is None:
        return ""
    compared = compare(stored, config)
    changes = [*compared.refused, *compared.allowed]
    parts = [(change, change.key.split(".")) for change in changes]
    return some_of([c.text for c, path in parts if path[0] in _SHAPING and path[-1] not in _SIZES])
