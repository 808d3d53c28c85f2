"""Build a judge from a battery's configuration and the data, after all checks that are possible before long work."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pmf_lightning.data.dataset import DataSource, ImageDataset
from pmf_lightning.encoders.battery.real import real_features
from pmf_lightning.encoders.build import make_battery
from pmf_lightning.encoders.classifier.train import ClassifierSettings, cached_classifier
from pmf_lightning.evaluation.battery.distances import LEAST_FOR_SPREAD
from pmf_lightning.evaluation.battery.judge import Judge
from pmf_lightning.evaluation.battery.scores import HELD_OUT, JudgeProtocol
from pmf_lightning.evaluation.small_data import Classify
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate


@dataclass(frozen=True)
class JudgeSetup:
    """A judge before the device is known.

    Args:
        group: the section ``battery`` of a configuration: members, reference, and perhaps floors.
        source: the data, whose held-out images are the validation images.
        protocol, batch_size, spread_draws: see ``Judge``.
        trained: members that the loss uses.
    """

    group: Mapping[str, Any]
    source: DataSource
    protocol: JudgeProtocol
    batch_size: int
    cache_dir: str | None
    trained: Collection[str] = ()
    spread_draws: int = 0

    @property
    def members(self) -> list[str]:
        """The names of the encoders."""
        return list(self.group["members"])

    @property
    def judged(self) -> list[str]:
        """The encoders whose mean ratio is compared: those held out, or all if the loss uses all."""
        return [name for name in self.members if name not in self.trained] or self.members

    def check(self) -> None:
        """Raise UserError for latents, unknown floors, and real images that are missing; no network is built."""
        source, floors = self.source, self.group.get("floors") or {}
        if source.latents:
            raise UserError(f"battery=: {source.name} provides latents, and encoders are of pixels; choose other data")
        if unknown := sorted(floors.keys() - set(self.members)):
            raise UserError(f"battery.floors.{unknown[0]}: the battery has no such encoder; leave it out")
        if not source.has_held_out and not set(self.members) <= floors.keys():
            raise UserError(
                f"battery=: data={source.name} holds out no images, which distances are divided by; set "
                "data.held_out_fraction=, or give battery.floors="
            )

    def name(self, n: int) -> str:
        """Return the name of the mean ratio that is compared: "fdr3_held_out_50k_float_fp32"."""
        rules = replace(self.protocol, published_floors=bool(self.group.get("floors")))
        return rules.name("fdr", len(self.judged), n, HELD_OUT if len(self.judged) < len(self.members) else None)

    def open(self, device: torch.device) -> Judge:
        """Build the judge on a device; networks of the data are trained, and real features measured, if not cached.

        All ranks must call it. Raises UserError for weights or references that are missing or do not fit.
        """
        self.check()
        held_out = self._held_out()
        battery = make_battery(self.group, None, self.source, self.cache_dir).to(device)
        real = real_features(battery, self.group["reference"], self.source, ["moments"], self.cache_dir)
        return Judge(
            battery,
            real,
            held_out,
            self.protocol,
            self.batch_size,
            device,
            floors=self.group.get("floors"),
            trained=self.trained,
            classify=self._classifier(),
            spread_draws=self.spread_draws,
        )

    def _held_out(self) -> ImageDataset | None:
        """Return the validation images, None if there are none; raises UserError if they are too few."""
        if not self.source.has_held_out:
            return None
        images, data = self.source.held_out(), f"data={self.source.name}"
        if len(images) < 2:
            raise UserError(f"battery=: {data} holds out one image, and its distance needs two; hold out more")
        if self.spread_draws and len(images) < LEAST_FOR_SPREAD:
            raise UserError(
                f"judge.spread_draws={self.spread_draws}: {data} holds out {len(images)} images, and their spread "
                f"needs {LEAST_FOR_SPREAD}; hold out more, or set judge.spread_draws=0"
            )
        return images

    def _classifier(self) -> Classify | None:
        """Return the classifier of metrics=small (seed 0) if the battery has members like it, else None."""
        if self.source.classes < 2:
            return None
        for member in self.group["members"].values():
            settings = member.get("settings", {})
            if str(settings.get("_target_", "")).endswith(f".{ClassifierSettings.__name__}"):
                small = replace(instantiate(settings), seed=0)
                return cached_classifier(self.source, small, self.cache_dir)
        return None


def trained_members(group: Mapping[str, Any], stored: Mapping[str, Any] | None) -> list[str]:
    """Return the members of ``group`` that the loss of a ``stored`` configuration uses, by name or by equal settings.

    None is the configuration of image files, whose loss is unknown.
    """
    posttrain, theirs = ((stored or {}).get(key) or {} for key in ("posttrain", "battery"))
    names = set(posttrain.get("encoders", ()))
    known = [settings for name, settings in theirs.get("members", {}).items() if name in names]
    return [name for name, settings in group["members"].items() if name in names or settings in known]
