"""Measure sampling settings with one network in memory; averages are loaded in turn, the noise is always the same."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.distributed.collectives import rank_and_world
from pmf_lightning.evaluation.frechet import NonFiniteError
from pmf_lightning.evaluation.guidance_search.records import Record, Records
from pmf_lightning.evaluation.guidance_search.space import SamplingSetting
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import network_evaluations, numbered_images

# (generate(labels [b], first) -> float images, number of images, classes) -> scores, the same on all ranks
Evaluate = Callable[[Callable[[Tensor, int], Tensor], int, int], Any]


class PointEvaluator:
    """Evaluator of sampling settings, which does not measure again what is in ``records``.

    Args:
        module: the network, on its device.
        averages: sets of weights by name.
        seed: seed of the noise; image i has the same noise at every setting.
        conditions: everything else that the scores depend on; see ``Record``.
        records: store of the results.
    """

    def __init__(
        self,
        module: GenerativeModule,
        averages: Mapping[str, Mapping[str, Tensor]],
        seed: int,
        conditions: Mapping[str, Any],
        records: Records,
    ):
        self.module, self.averages, self.seed = module, averages, seed
        self.conditions, self.records = conditions, records
        self._loaded: str | None = None

    def measure(self, point: SamplingSetting, n: int, evaluate: Evaluate, what: str) -> Record:
        """Return the record of ``n`` images at ``point``, stored or measured now. All ranks must call it.

        ``what`` names the scores of ``evaluate``; only records with the same text are reused.
        """
        conditions = {**self.conditions, "n": n, "seed": self.seed, "what": what}
        if (stored := self.records.find(point, conditions)) is not None:
            return stored
        begun, problem, scores = time.perf_counter(), None, {}
        try:
            scores = evaluate(self.generator(point), n, self.module.network.classes).as_dict()
        except NonFiniteError:
            problem = "images are not finite"
        nfe = network_evaluations(self.module.objective, **point.options)
        record = Record(point, conditions, scores, nfe, time.perf_counter() - begun, problem)
        return self.records.add(record, write=rank_and_world()[0] == 0)

    def draw(self, point: SamplingSetting, count: int, batch_size: int) -> Float[Tensor, "count c h w"]:
        """Return the first ``count`` images at ``point`` on the CPU, sampled ``batch_size`` at a time."""
        labels, generate = torch.arange(count) % self.module.network.classes, self.generator(point)
        return torch.cat(
            [generate(part, number * batch_size).cpu() for number, part in enumerate(labels.split(batch_size))]
        )

    def generator(self, point: SamplingSetting) -> Callable[[Int64[Tensor, " b"], int], Tensor]:
        """Load the point's weights and return its sampler, from ``(labels, first)`` to float images."""
        if self._loaded != point.ema:
            self.module.network.load_state_dict(self.averages[point.ema], strict=False)
            self._loaded = point.ema
        return lambda labels, first: numbered_images(self.module, labels, self.seed, first, **point.options)
