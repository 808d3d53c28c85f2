"""Published weights from a file or download, and the base class of frozen distances."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.state_names import unwrapped
from pmf_lightning.utils.tensor_files import load_tensors

Anything = TypeVar("Anything")


@dataclass(frozen=True)
class PretrainedWeights:
    """Published weights of a frozen network.

    ``name`` is the name of the distance, ``what`` the network, ``source`` the file and its published location. ``role``
    is the purpose of the weights in errors, ``instead`` the way to do without them. ``option`` is the option of their
    path; None: that of a perceptual loss.
    """

    name: str
    what: str
    source: str
    role: str = "perceptual loss"
    instead: str = "leave the loss out with perceptual=none"
    option: str | None = None

    @property
    def key(self) -> str:
        """The option of the path of the weights."""
        return self.option or f"features.{self.name}.weights"

    @property
    def remedy(self) -> str:
        """Remedy in errors for missing weights."""
        return f"give its path as {self.key}, or {self.instead}"

    def read(self, path: str) -> dict[str, Tensor]:
        """Return the state dict in a .safetensors or torch file, without running code in it.

        Raises UserError for a missing file, or one without a state dict.
        """
        key = f"{self.key}={path}"
        if not Path(path).expanduser().is_file():
            raise UserError(f"{key}: no such file; get {self.source}, {self.remedy}")
        try:
            state = _read(Path(path).expanduser())
        except Exception as error:  # torch may raise any error for a foreign file
            reason = type(error).__name__
            raise UserError(f"{key}: cannot be read as weights ({reason}); it should be {self.what}") from error
        if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
            state = state["model"]  # original releases nest it
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(f"{key}: holds no state dict; it should be {self.what}, {self.source}")
        return dict(state)

    def fetch(self, download: Callable[[], Anything]) -> Anything:
        """Return the result of a library's ``download``; raises UserError if it fails."""
        try:
            return download()
        except Exception as error:  # every library has its own errors for a missing connection
            reason = shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")
            raise UserError(
                f"{self.role} {self.name}: the weights of {self.what} are not on this machine and cannot be "
                f"downloaded ({reason}); get {self.source}, {self.remedy}"
            ) from error

    def fill(self, network: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
        """Load ``state`` into ``network``, which is on the meta device, in float32; other entries are ignored.

        Raises UserError if weights are missing or of another shape.
        """
        wanted, state = network.state_dict(), unwrapped(state, f"{self.key}={path}")
        wrong = [n for n, value in wanted.items() if n not in state or state[n].shape != value.shape]
        if wrong:
            found = f"of shape {tuple(state[wrong[0]].shape)}" if wrong[0] in state else "missing"
            raise UserError(
                f"{self.key}={path}: not the weights of {self.what}: {wrong[0]} is {found}, "
                f"{len(wrong)} of {len(wanted)} do not fit; get {self.source}, {self.remedy}"
            )
        network.load_state_dict({name: state[name].float() for name in wanted}, assign=True)


def _read(path: Path):
    if path.suffix == ".safetensors":
        return load_file(path)
    return load_tensors(path)


Square = Float[Tensor, "n c side side"]

Distances = Float[Tensor, " n"]


def check_channels(channels: int) -> None:
    """Raise UserError unless a perceptual loss can compare images of ``channels``."""
    if channels not in (1, 3):
        raise UserError(f"data.channels={channels}: perceptual losses compare pictures of 1 or 3; set perceptual=none")


class FrozenDistance(Encoder):
    """Distance between pairs of images, [n,C,side,side] in [-1, 1] with C = 1 or 3, in the features of an encoder.

    ``distance(generated, real)`` returns one number per pair, 0 for equal images. Gradients flow to ``generated``.
    """

    channels = (1, 3)

    def __init__(self, side: int):
        super().__init__()
        if side < 1:
            raise ValueError(f"side={side}: crops have at least 1 pixel")
        self.side = side

    def check(self, channels: int, resolution: int) -> None:
        """Raise UserError for data without 1 or 3 channels."""
        check_channels(channels)

    def forward(self, generated: Square, real: Square) -> Distances:
        """Return one distance per pair."""
        with torch.no_grad():
            theirs = self.encode(real)
        return self.compare(self.encode(generated), theirs)

    def compare(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Distances:
        """Return one distance per pair of encoded images."""
        raise NotImplementedError
