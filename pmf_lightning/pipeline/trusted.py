"""What a stored configuration may build: a fixed list of objects for each part, compared before anything is built.

A checkpoint, a folder of weights and a run of Weights & Biases hold a configuration that somebody else may have
written. Hydra builds whatever ``_target_`` names in it, any function of any module. So the configuration is read as
plain data first, and every ``_target_`` in it, at any depth, must be one of this list.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from textwrap import shorten
from typing import Any

from pmf_lightning.pipeline.migrate import MOVED_TARGETS
from pmf_lightning.utils.errors import UserError

_OURS = "pmf_lightning"
# Part of a configuration -> the objects that it may name, by their true module. A star marks those that conf/ names
# with _partial_: no other may be one, because a partial is called again with arguments that come later.
_PARTS = {
    "backbone": (
        *("models.vit.ViT", "models.jit_vit.JiTViT", "models.drifting_vit.DriftingViT", "models.mae.network.MAE"),
        "models.mlp.MLP",
    ),
    "objective": (
        *("objectives.pixel_meanflow.PixelMeanFlow", "objectives.jit.JiT", "objectives.drifting.Drifting"),
        *("objectives.masked_autoencoder.MaskedAutoencoder", "objectives.crops.CropLaw"),
        *(f"objectives.preconditioners.{name}" for name in ("EDM", "Linear", "SCM")),
    ),
    "optimizer": ("optim.optimizers.adam*", "optim.optimizers.adamw*", "optim.muon_adam.MuonAdam*"),
    "decoder": ("models.sd_vae.SDVAE",),
    "data": (
        *("data.sources.digits.Digits", "data.sources.folder.Folder", "data.sources.shapes.source.Shapes"),
        *("data.shards.source.Shards", "data.shards.source.LatentShards"),
    ),
    # The rest is stored with a run, and not built from a stored configuration.
    "trainer": ("distributed.strategies.ddp", "distributed.strategies.fsdp"),
    "metrics": (
        *("training.callbacks.fid.FidSettings", "evaluation.small_data.SmallDataSettings"),
        "encoders.classifier.train.ClassifierSettings",
    ),
    "protocol": ("evaluation.protocol.Protocol", "evaluation.protocol.PublishedReference"),
    "extractor": (
        *("encoders.dinov2.DinoV2", "encoders.inception.Inception"),
        *("encoders.extractors.ClassifierFeatures*", "encoders.extractors.ModuleFeatures"),
        "encoders.classifier.train.ClassifierSettings",
    ),
    "features": (
        *("encoders.perceptual.classifier.classifier_features*", "encoders.perceptual.convnext.ConvNeXtFeatures"),
        *("encoders.perceptual.lpips.LPIPS", "encoders.classifier.train.ClassifierSettings"),
    ),
    "drift_features": (
        *(
            f"encoders.drifting.build.{name}*"
            for name in ("pixels_alone", "released", "trained_by_run", "trained_on_data")
        ),
        *("encoders.drifting.train_mae.MAESettings", "encoders.drifting.convnext.ConvNeXtMaps"),
    ),
}
_HYDRAS = re.compile(r"_\w*_")  # keys that Hydra obeys
_MOST_VALUES, _MOST_DEPTH, _MOST_LETTERS = 20_000, 40, 10_000  # the longest of ours: about 500 values, 6 deep
_MOST_LISTED = 4  # targets in an error


def check_stored(config: Any, source: str, trust: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a stored configuration as new plain data with today's names, known to build only what the list has.

    Args:
        config: the configuration as it was read.
        source: what it comes from, as errors call it, such as "ckpt=model.ckpt".
        trust: packages of the user whose functions and classes it may build as well.

    Raises UserError for a ``_target_`` that its part may not build, for ``_partial_`` where conf/ has none, for other
    keys that Hydra obeys, for interpolations, which could read the environment or files, and for anything but plain
    data of a sensible length. Each ``_target_`` is named. Imports only the modules of the list, and those of ``trust``.
    """
    config = plain(config, source)
    problems = [] if "_target_" not in config else [_said(config["_target_"])]
    for part, value in config.items():
        known = _known(part)
        problems += [problem for node in _mappings(value) if (problem := _problem(node, known, trust))]
    if problems:
        listed = list(dict.fromkeys(problems))
        more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
        raise UserError(
            f"{source}: it would run code outside {_OURS} ({', '.join(listed[:_MOST_LISTED])}{more}); refused"
        )
    return config


def plain(config: Any, source: str) -> dict[str, Any]:
    """Return a copy of a stored configuration, known to be plain data; UserError as ``check_stored``."""
    if not isinstance(config, Mapping):
        raise UserError(f"{source}: its configuration is no mapping; it is damaged, or no file of {_OURS}")
    return _Plain(source).copy(config, 0)


def buildable() -> dict[str, dict[str, bool]]:
    """Return part -> the full name of each object that it may build -> whether conf/ builds it as a partial."""
    return {part: _known(part) for part in _PARTS}


def resolve(name: str) -> Any:
    """Return the function or class that is defined under ``name``, "pipeline.module.object".

    Imports that module. Raises LookupError where the module only refers to it, and it is defined elsewhere.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = vars(import_module(module)).get(attribute)
    except (ImportError, ValueError) as error:
        raise LookupError(name) from error
    if not callable(found) or (getattr(found, "__module__", None), getattr(found, "__qualname__", None)) != (
        module,
        attribute,
    ):
        raise LookupError(name)
    return found


def _known(part: str) -> dict[str, bool]:
    return {f"{_OURS}.{name.rstrip('*')}": name.endswith("*") for name in _PARTS.get(part, ())}


def _problem(node: Mapping[Any, Any], known: Mapping[str, bool], trust: tuple[str, ...]) -> str:
    """Say what a mapping would run that it may not; empty where nothing. Today's name replaces an older one."""
    if "_target_" not in node:
        return ""
    target, partial = node["_target_"], node.get("_partial_", False)
    if isinstance(target, str) and target in MOVED_TARGETS:
        node["_target_"] = target = MOVED_TARGETS[target]
    said = _said(target)
    if others := sorted(key for key in node if _HYDRAS.fullmatch(str(key)) and key not in ("_target_", "_partial_")):
        return f"{said} with {others[0]}"
    if not isinstance(target, str) or not _defined(target, known, trust):
        return said
    allowed = (False, True) if known.get(target, True) else (False,)
    return "" if any(partial is one for one in allowed) else f"{said} with _partial_"


def _defined(target: str, known: Mapping[str, bool], trust: tuple[str, ...]) -> bool:
    """Tell whether a target is on the list, or of a trusted package, and is what is defined under that name."""
    package = target.partition(".")[0]
    if target not in known and (package == _OURS or package not in trust):
        return False
    try:
        resolve(target)
    except LookupError:
        return False
    return True


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a value, at any depth."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(inner)


def _said(target: Any) -> str:
    """Return a target for an error, in one short line."""
    return shorten(target if isinstance(target, str) else repr(target), 120, placeholder="...") or "''"


class _Plain:
    """Copies plain data, and counts: a file may hold the same list a thousand times in each of a thousand lists."""

    def __init__(self, source: str):
        self.source, self.left = source, _MOST_VALUES

    def copy(self, value: Any, depth: int) -> Any:
        """Return a copy of a value; UserError for what is no plain data, or too long, or would be resolved."""
        self.left -= 1
        if self.left < 0 or depth > _MOST_DEPTH or (isinstance(value, str) and len(value) > _MOST_LETTERS):
            raise UserError(f"{self.source}: its configuration is too long or too deep to be one of ours; refused")
        if isinstance(value, Mapping):
            return {self._key(key): self.copy(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(inner, depth + 1) for inner in value]
        if isinstance(value, str) and ("${" in value or value == "???"):
            said = shorten(value, 80, placeholder="...")
            raise UserError(
                f"{self.source}: its configuration holds {said}, which is no value but would be looked up; refused"
            )
        if value is None or type(value) in (str, bool, int, float):
            return value
        raise UserError(f"{self.source}: its configuration holds a {type(value).__name__}, no plain value; refused")

    def _key(self, key: Any) -> str | int:
        if type(key) not in (str, int):
            raise UserError(f"{self.source}: its configuration has the key {key!r:.40}, which is no word; refused")
        return self.copy(key, 0)
