"""Convert official files, releases and checkpoints to ``StoredWeights``, and back to official files."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, open_dict
from torch import Tensor, nn
from tqdm.auto import tqdm

from pmf_lightning.config.compose import compose
from pmf_lightning.config.presets import published, published_of
from pmf_lightning.pipeline.build import build
from pmf_lightning.pipeline.checkpoints import build_stored, load_checkpoint, read_release
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.weights_folder import StoredWeights, WeightsInfo
from pmf_lightning.utils.cache import file_sha256
from pmf_lightning.utils.errors import UserError, called
from pmf_lightning.utils.precision import Number
from pmf_lightning.weights import (
    FAMILIES,
    bare,
    chosen_set,
    family_of,
    official_weights,
    positions_are_trained,
    preset,
    recognise,
    translate,
)

_OFFICIAL = "official"  # name of the weights in a released file with one set


def from_official(contents: object, path: Path, cfg: DictConfig) -> StoredWeights:
    """Convert the contents of an official file to weights and configuration; an incomplete head v is dropped.

    The preset is ``model`` of ``cfg`` (conf/commands/convert.yaml) if set, otherwise the one whose shapes fit.
    ``cfg.ema`` selects one of several sets of weights. Raises UserError if no preset or several fit, and the errors of
    ``bare`` and ``translate``.
    """
    weights = bare(contents, f"official weights {path}", cfg.ema, key=called("ema"))
    module, ours, aside = _fitting(weights, cfg)
    config = copy.deepcopy(module.config)
    if "heads" in config["backbone"]:  # only networks with optional heads have this option
        known, there = config["backbone"]["heads"], heads_of(ours)
        config["backbone"]["heads"] = {head: n for head, n in known.items() if head in there}
    chosen = chosen_set(contents, cfg.ema) or _OFFICIAL
    return StoredWeights(ours, aside, WeightsInfo(family_of(module.network).name, chosen, _source(path), config))


def from_release(path: Path, cfg: DictConfig) -> StoredWeights:
    """Read a released .msgpack of Drifting's generator, or its folder, as the model of ``cfg`` or of its sizes.

    Raises the UserErrors of ``read_release``, and one for options that do not apply to such a file.
    """
    if cfg.ema is not None:
        raise UserError(f"{called('ema')}={cfg.ema}: {path} holds one set of weights; leave {called('ema')} out")
    if cfg.get("name"):
        return read_release(path, _run_config(cfg.name, cfg))
    if cfg.get("data") is not None:
        raise UserError(f"data={cfg.data.name}: add model=, or leave data out: the sizes of {path} choose both")
    return read_release(path)


def heads_of(weights: Iterable[str]) -> list[str]:
    """Return the names of the heads in weights (with our names)."""
    parts = (name.split(".") for name in weights)
    return list(dict.fromkeys(part[1] for part in parts if part[0] == "heads"))


def from_checkpoint(path: Path, ema: str | Number | None, trust: Sequence[str] = ()) -> StoredWeights:
    """Return one average of a checkpoint; None: that of evaluation. Raises the UserErrors of ``load_checkpoint``."""
    return stored_of(load_checkpoint(path, ema, trust), _source(path))


def stored_of(module: GenerativeModule, source: Mapping[str, str] | None = None) -> StoredWeights:
    """Return the weights of a loaded module; ``source`` is that of ``WeightsInfo``."""
    config, average = copy.deepcopy(module.config), module.average or "raw"
    config["sampling"]["ema"] = average
    names = None if module.class_names is None else list(module.class_names)
    about = WeightsInfo(_family_name(module.network), average, source or {}, config, names)
    return StoredWeights(module.network.state_dict(), {}, about)


def official_dict(stored: StoredWeights, inference: bool, trust: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the contents of an official file of these weights (see ``official_weights``); no tensors share memory.

    Raises UserError if no official file has this architecture.
    """
    network = build_stored(stored.about.config, "in", len(stored.network), trust).network
    weights = official_weights(network, inference=inference, weights=stored.network, aside=stored.aside)
    return {name: value.clone() if _is_part(value) else value for name, value in weights.items()}


def _is_part(value: Tensor) -> bool:
    """Whether a tensor is a view of a larger storage, all of which torch.save would write."""
    return value.untyped_storage().nbytes() != value.nbytes


def _fitting(weights: Mapping[str, Tensor], cfg: DictConfig) -> tuple[GenerativeModule, dict, dict]:
    """Return the module (without weights) that the weights fit, and the two results of ``translate``."""
    names = [cfg.name] if cfg.get("name") else _candidates(weights)
    fits, refusals, trained = {}, [], positions_are_trained(weights)
    for name in tqdm(names, desc="presets", disable=len(names) == 1):
        run = _run_config(name, cfg)
        if trained and run.backbone.get("positions") == "sincos":
            run.backbone.positions = "learned"
        module = build(run, empty=True)
        try:
            fits[name] = (module, *translate(weights, module.network))
        except UserError as error:
            refusals.append(error)
    if len(fits) == 1:
        return next(iter(fits.values()))
    if len(names) == 1:
        raise refusals[0]
    if fits:
        raise UserError(f"this file fits several models; add model={' or model='.join(fits)}")
    raise UserError(
        f"this file looks like {recognise(weights)}, which matches no preset; set model=, data= "
        "and the options that differ"
    )


def _candidates(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the preset with the sizes of the weights; if no paper has such a model, all presets of our own."""
    seen = recognise(weights)
    papers = {preset(model) for family in FAMILIES for model in family.models}
    return [seen.preset] if seen.preset else sorted(published().keys() - papers)


def _run_config(name: str, cfg: DictConfig) -> DictConfig:
    """Compose the configuration of ``train model=name`` on the preset's data, with the changes in ``cfg``."""
    choices = [f"model={name}"]
    if cfg.get("data") is None:
        known = published_of(name)
        if known is None:
            raise UserError(f"model={name}: it has no data of its own; add data=")
        choices.append(f"data={known.data}")
    run = compose(choices)
    # ``ema`` has another meaning in this command, and its trainer has only what a recipe sets
    changed = [key for key in cfg if key in run and key not in ("ema", "hydra", "trainer")]
    with open_dict(run):
        for key in changed:
            run[key] = cfg._get_node(key)
    return run


def _family_name(network: nn.Module) -> str | None:
    try:
        return family_of(network).name
    except UserError:
        return None


def _source(path: Path) -> dict[str, str]:
    """Return the name and SHA-256 of a file."""
    return {"file": path.name, "sha256": file_sha256(path)}
