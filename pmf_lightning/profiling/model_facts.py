"""Facts and costs of a configured model, with the numbers of its paper."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from pmf_lightning.config import validate
from pmf_lightning.config.presets import Published, published_of
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.build import count_weights
from pmf_lightning.objectives.base import Objective
from pmf_lightning.pipeline.batches import micro_batches_of, queue_bytes
from pmf_lightning.pipeline.parts import make_model, make_source
from pmf_lightning.profiling import block_forwards, model_cost
from pmf_lightning.profiling.block_forwards import BlockForwards
from pmf_lightning.profiling.model_cost import NotCountedError
from pmf_lightning.profiling.step_memory import StepMemory, real_counts_of, step_memory
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.rng import BatchRows


@dataclass(frozen=True)
class Facts:
    """One model on one kind of data. ``bottleneck`` None: one patch convolution; ``paper`` None: an unknown name.

    ``blocks`` are the numbers of blocks of the trunk and of each head. ``prediction``, ``target``, ``compared`` and
    ``velocity`` are formulas (objectives/base.py, ``Description``). ``perceptual`` are the weights of further loss
    terms; no number includes their networks. ``official`` are the block-forwards of the official code, None if there is
    none. ``encoders`` are the numbers of weights of a battery's members in the loss, None where they are not known.
    """

    model: str
    data: str
    image: tuple[int, int, int]
    condition_tokens: int
    patch_tokens: int
    patch_dimension: int
    width: int
    bottleneck: int | None
    blocks: dict[str, int]
    parameters: int
    training_parameters: int
    multiply_adds: int
    prediction: str
    target: str
    compared: str
    velocity: str
    perceptual: dict[str, Number]
    block_forwards: BlockForwards
    official: BlockForwards | None
    memory: StepMemory
    encoders: dict[str, int | None]
    gpu_gb: Number | None
    paper: Published | None

    def differences(self) -> dict[str, float]:
        """Return the difference of each number from the paper's (block-forwards: the official code's), in percent."""
        paper = self.paper or Published("")
        pairs = {
            "parameters": (self.parameters, paper.parameters),
            "training_parameters": (self.training_parameters, paper.training_parameters),
            "multiply_adds": (self.multiply_adds, paper.gmacs and paper.gmacs * 1e9),
            "block_forwards": (self.block_forwards.total, self.official and self.official.total),
        }
        return {name: 100 * (ours / theirs - 1) for name, (ours, theirs) in pairs.items() if theirs}

    @property
    def largest_micro_batch(self) -> int | None:
        """The largest micro-batch on a GPU of ``gpu_gb`` gigabytes; None without a size."""
        return None if self.gpu_gb is None else self.memory.largest_micro_batch(self.gpu_gb * 1e9)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data, with sums and differences, in bytes, counts and percent."""
        table = asdict(self)
        table["tokens"] = self.condition_tokens + self.patch_tokens
        table["block_forwards"]["total"] = self.block_forwards.total
        table["official"] = self.official and asdict(self.official) | {"total": self.official.total}
        table["memory"] |= {"fixed": self.memory.fixed, "peak": self.memory.peak, "process": self.memory.process}
        table["memory"]["host"] = self.memory.host
        table["memory"]["largest_micro_batch"] = self.largest_micro_batch
        table["difference_percent"] = self.differences()
        return table


def find_facts(cfg: DictConfig) -> Facts:
    """Return the facts of the model that ``train`` would build from ``cfg``, without reading data or allocating memory.

    Raises UserError if the sizes are inconsistent.
    """
    model = make_model(cfg, empty=True)
    network, objective = model.network, model.objective
    if not objective.samplers or not hasattr(network, "trunk"):
        raise NotCountedError(
            f"{cfg.name}: costs are counted only for transformers that generate images; choose another model"
        )
    description, costs, source = objective.describe(), model_cost.count(network), make_source(cfg)
    encoders, micro_batches = frozen_weights(cfg, objective, source), micro_batches_of(cfg, source, objective)
    return Facts(
        model=cfg.name,
        data=cfg.data.name,
        image=(network.channels, network.resolution, network.resolution),
        condition_tokens=network.prefix,
        patch_tokens=network.grid**2,
        patch_dimension=network.channels * network.patch**2,
        width=cfg.backbone.width,
        bottleneck=cfg.backbone.get("bottleneck"),
        blocks={"trunk": len(network.trunk), **{name: len(head.blocks) for name, head in network.heads.items()}},
        parameters=costs.parameters,
        training_parameters=costs.training_parameters,
        multiply_adds=costs.multiply_adds,
        prediction=description.conversion,
        target=description.target,
        compared=description.compared,
        velocity=description.velocity,
        perceptual=dict(description.weights),
        block_forwards=block_forwards.count(network, objective, cfg.seed),
        official=description.official and block_forwards.of_passes(network, description.official),
        memory=count_memory(cfg, network, objective, model.make_optimizer, micro_batches, source, encoders),
        encoders=encoders,
        gpu_gb=cfg.get("gpu_gb"),
        paper=published_of(cfg.name),
    )


def count_memory(
    cfg: DictConfig,
    network: nn.Module,
    objective: Objective,
    make_optimizer: Callable[[], Optimizer],
    micro_batches: int,
    source: DataSource,
    encoders: Mapping[str, int | None],
) -> StepMemory:
    """Count the memory of a training step on each device.

    Args:
        cfg: the composed configuration of the run.
        network, objective: its network on the meta device, and its loss.
        make_optimizer: builds the optimizer of the network's weights.
        micro_batches: per device and step.
        source: the data.
        encoders: numbers of weights of the frozen encoders (``frozen_weights``).
    """
    shares = micro_batches * validate.world_size(cfg.trainer)
    counted = step_memory(
        network,
        objective,
        make_optimizer,
        averages=len(cfg.ema.halflife_kimg),
        micro_batch=cfg.batch // shares,
        shard=BatchRows(shares - 1, shares),  # the last micro-batch has the most rows with t != r
        real_counts=real_counts_of(cfg, objective),
    )
    known = (count for count in encoders.values() if count is not None)
    return replace(
        counted,
        encoders=4 * sum(known),
        queues=queue_bytes(cfg, source, objective),
        averages_on_host=cfg.ema.device == "cpu",
        moments_on_host=cfg.moments.device == "cpu",
    )


def frozen_weights(cfg: DictConfig, objective: Objective, source: DataSource) -> dict[str, int | None]:
    """Return the numbers of weights of the members of a battery in the loss; None for those that are not known."""
    request = objective.encoder_request
    if request is None or request.target is None:
        return {}
    return count_weights(request.names, cfg[request.group].members, source)
