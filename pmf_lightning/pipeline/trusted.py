"""Allowlist of the objects that each part of a stored configuration may build, checked before anything is built.

Checkpoints, weights folders and runs of Weights & Biases hold configurations that are untrusted. Hydra calls any
function of any module that ``_target_`` names. The configuration is therefore read as plain data first, and every
``_target_`` in it, at any depth, must be in this list, or be defined in a package that the user trusts
(pipeline/plugins.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from textwrap import shorten
from typing import Any

from pmf_lightning.pipeline import plugins
from pmf_lightning.pipeline.migrate import MOVED_TARGETS
from pmf_lightning.utils.errors import UserError, some_of

_OURS = "pmf_lightning"
_EXTRACTORS = (
    *("encoders.dinov2.DinoV2", "encoders.inception.Inception"),
    *("encoders.extractors.ClassifierFeatures*", "encoders.extractors.ModuleFeatures"),
    *("encoders.battery.extractor.EncoderFeatures", "encoders.battery.extractor.timm_features"),
    "encoders.battery.lite0.Lite0*",
    "encoders.classifier.train.ClassifierSettings",
)
# Part of a configuration -> the objects that it may name: ours by their defining module, torch's by their public name.
# A star marks those that conf/ builds with _partial_. Others may not be partials, because a partial is called later
# with more arguments.
_PARTS = {
    "backbone": (
        *("models.vit.ViT", "models.jit_vit.JiTViT", "models.drifting_vit.DriftingViT", "models.mae.network.MAE"),
        *("models.mlp.MLP", "toys.point_network.PointNetwork"),
    ),
    "objective": (
        *("objectives.pixel_meanflow.PixelMeanFlow", "objectives.jit.JiT", "objectives.drifting.Drifting"),
        *("objectives.masked_autoencoder.MaskedAutoencoder", "objectives.crops.CropLaw"),
        *(f"objectives.preconditioners.{name}" for name in ("EDM", "Linear", "SCM")),
    ),
    "posttrain": (
        "objectives.distribution_matching.DistributionMatching*",
        *(
            f"objectives.discrepancies.choices.{name}"
            for name in ("Frechet", "MMDNystrom", "MMDExact", "MMDFourier", "SlicedWasserstein", "Drift")
        ),
    ),
    "optimizer": ("torch.optim.Adam*", "torch.optim.AdamW*", "optim.muon_adam.MuonAdam*"),
    "decoder": ("models.sd_vae.SDVAE",),
    "augment": ("data.augment.EDMAugment",),
    "data": (
        *("data.sources.digits.Digits", "data.sources.folder.Folder", "data.sources.shapes.source.Shapes"),
        *("data.shards.source.Shards", "data.shards.source.LatentShards", "data.sources.named.source.NamedSet"),
        "data.sources.hf.source.Tables",
    ),
    # The rest is stored with a run but never built from a stored configuration.
    "trainer": ("distributed.strategies.ddp", "distributed.strategies.fsdp"),
    "metrics": (
        *("training.callbacks.fid.FidSettings", "evaluation.small_data.SmallDataSettings"),
        "training.callbacks.battery.BatterySettings",
        *_EXTRACTORS,
    ),
    "protocol": ("evaluation.protocol.Protocol", "evaluation.protocol.PublishedReference"),
    "extractor": _EXTRACTORS,
    "features": (
        *("encoders.perceptual.classifier.classifier_features*", "encoders.perceptual.convnext.ConvNeXtFeatures"),
        *("encoders.perceptual.lpips.LPIPS", "encoders.classifier.train.ClassifierSettings"),
        *("encoders.perceptual.feature_maps.MapDistance", "encoders.battery.lite0.Lite0"),
    ),
    "battery": (
        *(f"encoders.battery.members.{name}*" for name in ("ClassifierMember", "MAEMember", "Pixels")),
        *("encoders.battery.timm_member.TimmMember", "encoders.battery.lite0.Lite0"),
        "encoders.battery.inception_member.InceptionMember",
        *(f"encoders.battery.hub_members.{name}" for name in ("TransformersMember", "DreamSimMember", "VAEMember")),
        "encoders.drifting.train_mae.MAESettings",
        "encoders.classifier.train.ClassifierSettings",
    ),
    "drift_features": (
        *(
            f"encoders.drifting.build.{name}*"
            for name in ("pixels_alone", "published_maps", "released", "trained_by_run", "trained_on_data")
        ),
        *("encoders.drifting.train_mae.MAESettings", "encoders.drifting.convnext.ConvNeXtMaps"),
        "encoders.classifier.train.ClassifierSettings",
        *("encoders.drifting.feature_maps.TimmMaps", "encoders.battery.lite0.Lite0"),
    ),
}
_NEVER_BUILT = ("callbacks", "logger", "study")  # may name any class, and are left out of what is built
_HYDRAS = re.compile(r"_\w*_")  # keys that Hydra interprets
_MOST_VALUES, _MOST_DEPTH, _MOST_LETTERS = 20_000, 40, 10_000  # our longest has about 500 values and 6 levels


def check_stored(config: Any, source: str, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Return a stored configuration as checked plain data with current names, which builds only listed objects.

    Args:
        config: the configuration as it was read.
        source: its name in errors, such as "ckpt=model.ckpt".
        trust: packages of the user whose functions and classes it may build as well, besides those of PMF_TRUST and of
            installed plugins.

    Raises UserError for a ``_target_`` that its part may not build, a ``_partial_`` that conf/ does not have, other
    keys that Hydra interprets, interpolations (they could read the environment or files), and anything but plain data
    of limited length. The error names each ``_target_``, and the option that trusts its package. Only modules of the
    list and of trusted packages are imported.
    """
    packages = plugins.trusted(trust)
    config = {part: value for part, value in plain(config, source).items() if part not in _NEVER_BUILT}
    problems = [] if "_target_" not in config else [_Problem(_describe(config["_target_"]))]
    for part, value in config.items():
        known = _known(part)
        problems += [problem for node in _mappings(value) if (problem := _problem(node, known, packages))]
    if problems:
        listed = some_of(list(dict.fromkeys(problem.text for problem in problems)), most=4)
        remedy = plugins.remedy([problem.package for problem in problems])
        raise UserError(f"{source}: it would run code outside {_OURS} ({listed}); refused{remedy}")
    return config


def plain(config: Any, source: str) -> dict[str, Any]:
    """Return a copy of a stored configuration, checked to be plain data; raises UserError like ``check_stored``."""
    if not isinstance(config, Mapping):
        raise UserError(f"{source}: its configuration is not a mapping; it is damaged, or not a file of {_OURS}")
    return _Plain(source).copy(config, 0)


@dataclass(frozen=True)
class _Problem:
    """A forbidden object: its description, and the package that would have to be trusted, "" if that is no remedy."""

    text: str
    package: str = ""


def resolve(name: str) -> Any:
    """Import and return the function or class defined under ``name``, "package.module.object".

    A package may also export what one of its own modules defines, as torch.optim does. Raises LookupError if the object
    is missing, or defined elsewhere and only imported there.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = vars(import_module(module)).get(attribute)
    except (ImportError, ValueError) as error:
        raise LookupError(name) from error
    inside = f"{getattr(found, '__module__', None)}.".startswith(f"{module}.")
    if not callable(found) or not inside or getattr(found, "__qualname__", None) != attribute:
        raise LookupError(name)
    return found


def _known(part: str) -> dict[str, bool]:
    names = [name if name.startswith("torch.") else f"{_OURS}.{name}" for name in _PARTS.get(part, ())]
    return {name.rstrip("*"): name.endswith("*") for name in names}


def _problem(node: Mapping[Any, Any], known: Mapping[str, bool], packages: frozenset[str]) -> _Problem | None:
    """Return the forbidden object that a mapping would build, None if there is none; old names are replaced."""
    if "_target_" not in node:
        return None
    target, partial = node["_target_"], node.get("_partial_", False)
    if isinstance(target, str) and target in MOVED_TARGETS:
        node["_target_"] = target = MOVED_TARGETS[target]
    text = _describe(target)
    if others := sorted(key for key in node if _HYDRAS.fullmatch(str(key)) and key not in ("_target_", "_partial_")):
        return _Problem(f"{text} with {others[0]}")
    if not isinstance(target, str):
        return _Problem(text)
    if target not in known:
        package = target.partition(".")[0]
        if package == _OURS:
            return _Problem(text)
        if package not in packages:
            return _Problem(text, package)
        if reason := _not_defined_in(package, target):
            return _Problem(f"{text}: {reason}")
    elif not _defined(target):
        return _Problem(text)
    allowed = (False, True) if known.get(target, True) else (False,)
    return None if any(partial is one for one in allowed) else _Problem(f"{text} with _partial_")


def _defined(target: str) -> bool:
    """Whether a target of the list is defined under exactly that name."""
    try:
        resolve(target)
    except LookupError:
        return False
    return True


def _not_defined_in(package: str, target: str) -> str:
    """Return why a target is no function or class that is defined in the trusted ``package``, "" if it is one."""
    module, _, attribute = target.rpartition(".")
    try:
        found = vars(import_module(module)).get(attribute)
    except Exception as error:  # the user's module may raise any error
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return f"{module or target} cannot be imported ({shorten(why, 120, placeholder='...')})"
    home, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if found is None or not isinstance(home, str) or home.partition(".")[0] != package:
        return f"it is not defined in {package}"
    try:
        same = resolve(f"{home}.{name}") is found
    except LookupError:
        same = False
    return "" if same else f"it is not a function or class of a module of {package}"


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a value, at any depth."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(inner)


def _describe(target: Any) -> str:
    """Format a target for an error, in one short line."""
    return shorten(target if isinstance(target, str) else repr(target), 120, placeholder="...") or "''"


class _Plain:
    """Copier of plain data with a limit on the number of values: nested YAML aliases grow exponentially."""

    def __init__(self, source: str):
        self.source, self.left = source, _MOST_VALUES

    def copy(self, value: Any, depth: int) -> Any:
        """Return a copy of a value; UserError if it is not plain data, too long, or an interpolation."""
        self.left -= 1
        if self.left < 0 or depth > _MOST_DEPTH or (isinstance(value, str) and len(value) > _MOST_LETTERS):
            raise UserError(f"{self.source}: its configuration is too long or too deep to be one of ours; refused")
        if isinstance(value, Mapping):
            return {self._key(key): self.copy(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(inner, depth + 1) for inner in value]
        if isinstance(value, str) and ("${" in value or value == "???"):
            text = shorten(value, 80, placeholder="...")
            raise UserError(
                f"{self.source}: its configuration holds {text}, which is a reference and not a value; refused"
            )
        if value is None or type(value) in (str, bool, int, float):
            return value
        raise UserError(f"{self.source}: its configuration holds a {type(value).__name__}, not a plain value; refused")

    def _key(self, key: Any) -> str | int:
        if type(key) not in (str, int):
            raise UserError(f"{self.source}: its configuration has the key {key!r:.40}, which is not text; refused")
        return self.copy(key, 0)
