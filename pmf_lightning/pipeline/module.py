"""LightningModule of every objective: sample keyed random numbers, call the objective, log. It has no formulas."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from lightning import LightningModule
from torch import Tensor, nn

from pmf_lightning.data.transforms import preprocess_latents, preprocess_pixels
from pmf_lightning.distributed.collectives import Devices, gather_rows, of_rank_zero, sum_over_ranks
from pmf_lightning.objectives.base import AnyBatch, Batch, LabelBatch, Losses, Objective, QueueBatch, State
from pmf_lightning.objectives.jvp.compiled import CompiledNetwork
from pmf_lightning.optim.host_moments import HostMoments
from pmf_lightning.optim.optimizers import make_optimizer
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.rng import BatchRows
from pmf_lightning.utils.state_names import unwrapped


class GenerativeModule(LightningModule):
    """A network with its objective and optimizer.

    Args:
        network: the backbone; the module has no other weights.
        objective: a pure function that also samples its random numbers from keys (see objectives/base.py).
        optimizer: function from parameter groups to a torch optimizer.
        rate_factor: function from the step (from 0) to the factor on the learning rate.
        seed: key of all random numbers of training.
        config: the resolved configuration as plain data; it is stored in checkpoints.
        decoder: decodes the latents of a latent model to pixels (models/sd_vae.py); None if the network outputs
            pixels. It is not part of parameters, checkpoints and averages.
        augment: transforms images and tells how: (images, rows, seed, step) -> (images, vectors), such as
            data/augment.py; None: images are not augmented.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer],
        rate_factor: Callable[[int], float],
        seed: int,
        config: dict,
        decoder: Any = None,
        augment: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ):
        super().__init__()
        self.config = config
        self.set_network(network)
        self.objective = objective
        self.seed = seed
        self.decoder = decoder
        self.augment = augment
        self.average: str | None = None  # name of the average that was loaded from a checkpoint
        self.class_names: Sequence[str] | None = None  # in the order of the labels, of the data or a checkpoint
        self.init_from: dict[str, Any] | None = None  # description of the weights that the run started from
        self.state: State = {}  # of the objective
        self._observed: list[dict[str, Tensor]] = []  # of the micro-batches of the running step
        self._means: dict[str, Tensor] = {}  # to log, of the running micro-batch on this device
        self._shown: Collection[str] = ()  # those in the progress bar
        self._encoders: list[Any] = [None]  # in a list, so that they are not part of parameters and checkpoints
        self._optimizer = optimizer
        self._rate_factor = rate_factor

    @property
    def encoders(self) -> Any:
        """Frozen networks of the loss, as its ``encoder_request`` describes them: a dict by name, one, or None."""
        return self._encoders[0]

    @property
    def compiled_network(self) -> Any:
        """The network that the loss calls: compiled if the configuration sets it."""
        return self._compiled or self.network

    def set_network(self, network: nn.Module) -> None:
        """Set the network, of which the loss calls the compiled form if the configuration says so."""
        self.network = network
        self._compiled = CompiledNetwork(network) if self.config["compile"] else None

    def set_encoders(self, encoders: Any) -> None:
        """Set ``encoders``."""
        self._encoders = [encoders]

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer over the network's tagged parameters, and its learning-rate schedule.

        Raises TypeError if what is configured is no optimizer.
        """
        optimizer = self.optimizer_of(self.network)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """Build the configured optimizer over the weights of ``network``; TypeError if it is no optimizer."""
        return make_optimizer(self._optimizer, network)

    def on_fit_start(self) -> None:
        """Move the encoders to the device."""
        encoders = self.encoders
        for encoder in encoders.values() if isinstance(encoders, Mapping) else [encoders]:
            if encoder is not None:
                encoder.to(self.device)

    def on_train_start(self) -> None:
        """Set the objective's state before the first step, or move a restored one to the device.

        Restored moments, which Lightning moves to the device, return to host memory if they are kept there.
        """
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, HostMoments):
                optimizer.keep_moments()
        if not self.state:
            with torch.no_grad():
                state = self.objective.initial_state(self.network, self.encoders, self.seed)
            self.state = {name: of_rank_zero(value.to(self.device)) for name, value in state.items()}
        self.state = {name: value.to(self.device) for name, value in self.state.items()}

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Return the loss of one micro-batch, and per-sample errors by time if the objective has times.

        The micro-batch is the list of tensors that the datamodule yields for the objective's kind of ``data``: images
        [B,...] and labels [B]; positives [n,P,...], labels [n] and negatives [n,N,...]; or labels [B]. See ``inputs``
        for the kinds of images. "by_time" holds name -> (t [n], squares per pixel [n]): all rows for squared errors,
        the rows that have a value for diagnostics.
        """
        shard = self._shard(batch_idx)
        batch = self._preprocess(batch, shard)
        rows = len(batch.y)
        draws = self.objective.draw(batch, self.seed, self.global_step, shard)
        # The raw network goes in: Lightning runs this method inside DDP's forward, so gradients are still averaged.
        more = {"devices": Devices(self.trainer)} if self.objective.needs_global_batch else {}
        more |= {"state": self.state} if self.state else {}
        losses = self.objective(self.compiled_network, batch, draws, self.encoders, **more)
        if self.state:
            self._observed.append(losses.observed)
        pixels = math.prod(batch.shape if self.objective.data == "labels" else batch.x.shape[-3:])
        self._means = {name: sums.mean() / pixels for name, sums in losses.per_sample.items()}
        self._means |= {name: values.mean() for name, values in losses.distances.items()}
        self._shown = losses.per_sample.keys()
        for name, value in losses.scalars.items():
            self.log(name, value, prog_bar=True, batch_size=rows)
        return {"loss": losses.total, "by_time": _by_time(losses, pixels)}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log means of the step's last micro-batch over all devices. The host does not wait for their reduction."""
        if not self._means:
            return
        sums = sum_over_ranks(torch.stack([*self._means.values()]))
        for name, mean in zip(self._means, sums / self.trainer.world_size, strict=True):
            self.log(name, mean, prog_bar=name in self._shown)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the optimiser step, then advance the objective's state once from all micro-batches and devices.

        A step that was skipped for non-finite values has left no gradients, and does not advance the state.
        """
        step = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if not self.state:
            return
        seen, self._observed = self._observed, []
        stepped = any(weight.grad is not None for group in optimizer.param_groups for weight in group["params"])
        if stepped:
            observed = {name: gather_rows([one[name] for one in seen]) for name in seen[0]}
            self.state = self.objective.next_state(self.state, observed, step)

    def _preprocess(self, batch: Sequence[Tensor], shard: BatchRows) -> AnyBatch:
        """Convert a loaded batch to the batch of the objective's kind of data."""
        flip, step = self.config["flip"], self.global_step
        if self.objective.data == "labels":
            (labels,) = batch
            side = self.network.resolution
            return LabelBatch(labels, (self.network.channels, side, side))
        images, labels, *negatives = batch
        rows = shard.rows(len(labels))
        if self.objective.data == "images":
            x = self.inputs(images, rows, step, flip=flip)
            if self.augment is None:
                return Batch(x, labels)
            x, vectors = self.augment(x, rows, self.seed, step)
            return Batch(x, labels, {"augment": vectors})
        roles = {"positives": images, "negatives": negatives[0]}
        x = {role: self.inputs(part, rows, step, role, flip=flip) for role, part in roles.items()}
        return QueueBatch(x["positives"], labels, x["negatives"])

    def inputs(
        self, images: Tensor, rows: Int64[Tensor, " b"], step: int, role: str | None = None, flip: bool = False
    ) -> Tensor:
        """Convert the images of the global ``rows`` of a step to network inputs.

        Images are uint8 pixels [b,C,H,W], with ``flip`` mirrored at random; or float moments [b,2,C,h,w] of raw
        latents, from which latents are sampled and normalised; or floats [b,C,H,W], which are unchanged. With a
        ``role`` (positives or negatives of drifting) a row has several images, [b,n,...]. The random numbers are keyed
        by the run's seed, the role, the step and the row.
        """
        key = (rows, self.seed, step, *([role] if role else []))
        if images.dtype == torch.uint8:
            return preprocess_pixels(images, flip, *key)
        if images.dim() < (6 if role else 5):
            return images
        if self.decoder is None:
            raise UserError("the data are latents, and decoder=null: leave decoder= out, it normalises them")
        return preprocess_latents(images, self.decoder.normalise, *key)

    def to_pixels(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b colours height width"]:
        """Return the network's images as pixels in about [-1, 1]: latents are decoded, pixels are unchanged."""
        return images if self.decoder is None else self.decoder.decode(images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the output of ``to_pixels``."""
        network, decoder = self.network, self.decoder
        channels, scale = (network.channels, 1) if decoder is None else (3, decoder.scale)
        return (channels, network.resolution * scale, network.resolution * scale)

    def _shard(self, batch_idx: int) -> BatchRows:
        """Return the rows of the global batch in this rank's micro-batch; the data loader assigns the same rows."""
        micro_batches, world = self.trainer.accumulate_grad_batches, self.trainer.world_size
        return BatchRows(batch_idx % micro_batches * world + self.global_rank, micro_batches * world)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Store configuration, class names, number of images seen, the objective's state, origin of the weights."""
        checkpoint["config"] = self.config
        checkpoint["images"] = checkpoint["global_step"] * self.config["batch"]
        if self.class_names is not None:
            checkpoint["class_names"] = list(self.class_names)
        if self.state:
            checkpoint["objective_state"] = dict(self.state)
        if self.init_from:
            checkpoint["init_from"] = self.init_from

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Load the objective's state, and optimizer moments, but settings such as the learning rate from this run."""
        unwrap_checkpoint(checkpoint, "this checkpoint")
        self.state = checkpoint.get("objective_state", {})
        self.init_from = checkpoint.get("init_from")
        stored = checkpoint["optimizer_states"][0]["param_groups"]
        for old, new in zip(stored, self.configure_optimizers()["optimizer"].param_groups, strict=False):
            old.update({key: new[key] for key in old.keys() & new.keys() - {"params", "kind"}})
            old["lr"] = old["initial_lr"] * self._rate_factor(checkpoint["global_step"])
        checkpoint["lr_schedulers"][0]["base_lrs"] = [group["initial_lr"] for group in stored]


def _by_time(losses: Losses, pixels: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name -> (times, squares per pixel) of the rows that have a value; nothing without times."""
    if losses.t is None:
        return {}
    found = {name: (losses.t, sums / pixels) for name, sums in losses.per_sample.items()}
    if losses.diagnostic_rows is None:
        return found | {name: (losses.t, sums / pixels) for name, sums in losses.diagnostics.items()}
    rows = losses.diagnostic_rows.nonzero().squeeze(1)  # on the CPU, with ``t``: a mask would be copied with a wait
    t = losses.t[rows]
    for name, sums in losses.diagnostics.items():
        found[name] = t, sums[rows.to(sums.device, non_blocking=True)] / pixels
    return found


def unwrap_checkpoint(checkpoint: dict[str, Any], source: str) -> dict[str, Any]:
    """Remove wrapper names from a checkpoint's weights and averages, in place, and return it; raises UserError."""
    checkpoint["state_dict"] = unwrapped(checkpoint["state_dict"], source)
    averages = checkpoint["ema"]
    checkpoint["ema"] = {k: unwrapped(v, source) if isinstance(v, Mapping) else v for k, v in averages.items()}
    return checkpoint
