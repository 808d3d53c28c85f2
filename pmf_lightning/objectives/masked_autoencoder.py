"""Masked autoencoder for the features of Drifting (arXiv 2602.04770): reconstruct masked patches, then classify.

Square cells of the patch grid are set to zero, each independently. The reconstruction error of an image is the sum of
squares over its masked pixels, divided by the number of its masked patches. The loss of an image is
w cross-entropy + (1 - w) reconstruction error, the loss of a batch is the mean over images. The mean over equal shards
of a batch therefore equals the loss of the full batch. There is no time and no noise.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pmf_lightning.objectives.base import Batch, Draws, Losses, ObjectiveBase
from pmf_lightning.objectives.crops import UNIFORMS, CropLaw, crop_boxes, resized_crops
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number, at_least_float32

Images = Float[Tensor, "b c h w"]


@runtime_checkable
class Autoencoder(Protocol):
    """A network from masked images to reconstructions "image" [B,C,H,W] and "logits" [B,classes]."""

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Return "image" and "logits"."""
        ...


@dataclass(frozen=True)
class MAEDraws(Draws):
    """The random numbers of one batch, and the classification weight of the step.

    ``hidden`` [B, rows, columns] is the mask of cells. ``crops`` holds the boxes (top, left, height, width) of the crop
    augmentation, as fractions of the image. ``mirrored`` marks the images that are flipped. None disables either.
    """

    hidden: Bool[Tensor, "b rows columns"]
    class_weight: float
    crops: Float[Tensor, "b 4"] | None = None
    mirrored: Bool[Tensor, " b"] | None = None


@dataclass(frozen=True)
class MaskedAutoencoder(ObjectiveBase):
    """The masked-autoencoder objective; its values are set in conf/objective and conf/model.

    Fields: ``patch`` the side of the network's patches in pixels; ``cell`` the side of a masked cell in patches;
    ``mask_fraction`` the probability that a cell is masked; ``class_weight`` w at the end of training. It applies in
    the last ``class_steps`` of ``steps`` and rises from 0 in their first ``class_warmup`` steps (class_steps=0: no
    classification). Augmentation: ``crop`` the distribution of random resized crops, or None; ``flip`` whether half
    of the images are flipped.

    Raises ValueError for values out of range.
    """

    heads: ClassVar = ("image", "logits")
    reconstructs: ClassVar = True  # not a generative model
    changeable_fields: ClassVar = ("steps",)  # the length of the run
    without_classes: ClassVar = {"objective.class_steps": 0}
    loss_note: ClassVar = (
        "loss_reconstruction is the mean squared error of hidden pixels; the loss sums it over a patch"
    )

    patch: int
    cell: int
    mask_fraction: Number
    class_weight: Number
    class_steps: int
    class_warmup: int
    steps: int
    crop: CropLaw | None
    flip: bool

    def __post_init__(self):
        for name in ("patch", "cell"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("mask_fraction", "class_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be between 0 and 1")
        if self.class_steps < 0 or self.class_warmup < 0:
            raise ValueError(f"class_steps={self.class_steps} class_warmup={self.class_warmup}: steps are 0 or more")

    def class_weight_at(self, step: int) -> float:
        """Return w at ``step`` (from 0)."""
        since = step - (self.steps - self.class_steps)
        if not self.class_steps or since < 0:
            return 0.0
        return self.class_weight * min(1.0, since / max(1, self.class_warmup))

    def draw(self, batch: Batch, seed: int, step: int, shard: rng.BatchRows | None = None) -> MAEDraws:
        """Sample the random numbers of training step ``step`` for one shard of the global batch (all of it by default).

        Every number depends only on (seed, step, global row) and is on the CPU. Raises ValueError unless the image is
        divisible into cells.
        """
        shard = shard or rng.BatchRows()
        size, (height, width) = len(batch.x), batch.x.shape[2:]
        total, rows, side = size * shard.count, shard.rows(size), self.patch * self.cell
        if height % side or width % side:
            raise ValueError(
                f"images of {height} x {width} pixels are not a multiple of the hidden cells, of patch x cell = "
                f"{self.patch} x {self.cell} = {side} pixels along a side; change patch, cell or the resolution"
            )
        shape = (height // side, width // side)
        coins = rng.uniform(seed, "hidden", step, count=total * shape[0] * shape[1]).view(total, *shape)
        crops = mirrored = None
        if self.crop is not None:
            numbers = rng.uniform(seed, "crop", step, count=total * UNIFORMS).view(total, UNIFORMS)
            crops = crop_boxes(numbers[rows], height, width, self.crop).to(batch.x.dtype)
        if self.flip:
            mirrored = rng.uniform(seed, "mirror", step, count=total)[rows] < 0.5
        return MAEDraws(coins[rows] < self.mask_fraction, self.class_weight_at(step), crops, mirrored)

    def __call__(
        self,
        network: Autoencoder,
        batch: Batch,
        draws: MAEDraws,
        encoders: None = None,
        keep_fields: bool = False,
    ) -> Losses:
        """Return the losses of a batch.

        ``per_sample`` "loss_reconstruction" is the reconstruction error extrapolated to the full image, a sum over C,
        H, W; divided by C*H*W it is the mean squared error of a masked pixel. ``distances`` holds "cross_entropy" (in
        nats) and "accuracy" (0 or 1). Both are logged in every step; only the former enters the loss, with weight w. An
        image without masked cells has reconstruction error 0. With ``keep_fields``: "x" (augmented), "masked" (the
        network's input) and "image" (its output).
        """
        on = draws.to(batch.x.device)
        x = augmented(batch.x, on)
        hidden = self.hidden_pixels(on.hidden)
        masked = x.masked_fill(hidden, 0.0)
        answer = network(masked)
        squares = at_least_float32(answer["image"] - x).square() * hidden
        patches = hidden.flatten(1).sum(1) / self.patch**2
        error = squares.flatten(1).sum(1) / patches.clamp_min(1)
        logits = at_least_float32(answer["logits"])
        entropy = F.cross_entropy(logits, batch.y, reduction="none")
        w = draws.class_weight
        total = (w * entropy + (1 - w) * error).mean()
        whole = x.shape[2] * x.shape[3] / self.patch**2
        watched = {"cross_entropy": entropy.detach(), "accuracy": (logits.argmax(1) == batch.y).to(error.dtype)}
        kept = {"x": x, "masked": masked, "image": answer["image"]} if keep_fields else None
        return Losses(total, {"loss_reconstruction": error.detach() * whole}, kept, distances=watched)

    @torch.no_grad()
    def reconstructions(self, network: Autoencoder, batch: Batch, draws: MAEDraws) -> tuple[Images, Images, Images]:
        """Return masked input, masked input filled with the prediction, and original, each [B,C,H,W]."""
        fields = self(network, batch, draws, keep_fields=True).fields
        hidden = self.hidden_pixels(draws.hidden.to(batch.x.device))
        return fields["masked"], torch.where(hidden, fields["image"], fields["x"]), fields["x"]

    @torch.no_grad()
    def held_out_metrics(self, network: Autoencoder, batch: Batch, draws: MAEDraws) -> dict[str, Float[Tensor, " b"]]:
        """Return for each image "held_out_error", the mean squared error of masked pixels, and "held_out_accuracy".

        The accuracy, 0 or 1, is that of the class predicted from the unmasked image.
        """
        error = self(network, batch, draws).per_sample["loss_reconstruction"] / batch.x[0].numel()
        logits = network(batch.x, heads=("logits",))["logits"]
        return {"held_out_error": error, "held_out_accuracy": (logits.argmax(1) == batch.y).float()}

    def check_data(self, *, latents: bool, flip: bool, name: str) -> None:
        """Raise ValueError if images would be mirrored twice, or if latents would be cropped or mirrored."""
        if flip and self.flip:
            raise ValueError("flip=true objective.flip=true: images would be mirrored twice; set flip=false")
        if latents and (self.crop is not None or self.flip):
            raise ValueError(
                f"objective.crop, objective.flip: {name} provides latents, and a cropped or mirrored latent is not "
                "that of the cropped or mirrored image; set objective.crop=null objective.flip=false"
            )

    def hidden_pixels(self, hidden: Bool[Tensor, "b rows columns"]) -> Bool[Tensor, "b 1 h w"]:
        """Return the mask of pixels covered by the masked cells."""
        side = self.patch * self.cell
        return hidden[:, None].repeat_interleave(side, 2).repeat_interleave(side, 3)


def augmented(x: Images, draws: MAEDraws) -> Images:
    """Apply the crops of ``draws`` to square images, resized to the same size (cubic, clipped), and the flips."""
    if draws.crops is not None:
        x = resized_crops(x, draws.crops, x.shape[-1]).clamp(-1, 1).to(x.dtype)
    if draws.mirrored is not None:
        x = torch.where(draws.mirrored[:, None, None, None], x.flip(3), x)
    return x
