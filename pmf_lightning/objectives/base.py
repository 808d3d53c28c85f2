"""The contract of objectives: losses = objective(network, batch, draws, encoders), a pure function of its arguments.

``Objective`` lists all that the rest of the package uses of an objective. ``ObjectiveBase`` has the defaults: a new
objective derives from it, writes ``draw`` and ``__call__``, and overrides what is different. ``check_contract`` reports
what is missing when the objective is built.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.utils.precision import Number

DataKind = Literal["images", "class_queues", "labels"]
# Samplers of sampling/generate.py, and the method of the objective that each calls.
SAMPLERS = {"average": "average_velocity", "heun": "ode_velocity", "euler": "ode_velocity", "one_step": "one_step"}


@dataclass(frozen=True)
class Batch:
    """Images x [B,C,H,W] in [-1,1] and their labels y [B], before label dropout.

    ``conditions`` are further conditions of the network by name, [B,...], such as how each image was augmented.
    """

    x: Float[Tensor, "b c h w"]
    y: Int64[Tensor, " b"]
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def conditions_of(self, rows: Int64[Tensor, " n"] | slice) -> dict[str, Tensor]:
        """Return the further conditions of some rows."""
        return {name: values[rows] for name, values in self.conditions.items()}


@dataclass(frozen=True)
class QueueBatch:
    """Labels y [n] with positives x [n,P,C,H,W] (real, of the label's class) and negatives [n,N,C,H,W] (any class)."""

    x: Float[Tensor, "n p c h w"]
    y: Int64[Tensor, " n"]
    negatives: Float[Tensor, "n k c h w"]


@dataclass(frozen=True)
class LabelBatch:
    """Labels y [B] without images; ``shape`` (C, H, W) is that of the network's images."""

    y: Int64[Tensor, " b"]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Draws:
    """Base of the random numbers of a batch: a subclass is a frozen dataclass of tensors."""

    def to(self, device: torch.device) -> "Draws":
        """Return the draws with all tensors on a device."""
        given = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in given.items()})


AnyBatch = Batch | QueueBatch | LabelBatch
State = Mapping[str, Tensor]  # tensors that an objective carries from step to step


@dataclass(frozen=True)
class Losses:
    """Return value of an objective.

    ``total`` is the scalar to minimise. ``per_sample`` holds the raw sums over C, H, W of each squared error, [B].
    ``distances`` holds values per image whose mean is logged, [B], such as perceptual distances; 0 where they do not
    count. ``diagnostics`` holds sums over C, H, W that are logged and not minimised, [B]. ``scalars`` holds values of
    the full batch to log. ``fields`` holds the intermediate fields, [B,C,H,W], when they were requested. ``t`` [B] are
    the times by which ``per_sample`` and ``diagnostics`` are also logged (None: no log by time), and
    ``diagnostic_rows`` [B] marks the rows whose diagnostics have a value (None: all). ``observed`` holds values per
    row, [B,...] without graph, that update the state of the objective (``ObjectiveBase.next_state``).
    """

    total: Float[Tensor, ""]
    per_sample: dict[str, Float[Tensor, " b"]]
    fields: dict[str, Float[Tensor, "b c h w"]] | None = None
    distances: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)
    diagnostics: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)
    scalars: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    t: Float[Tensor, " b"] | None = None
    diagnostic_rows: Tensor | None = None
    observed: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Network(Protocol):
    """A backbone: maps an image and named conditions to one raw field per head."""

    classes: int

    def __call__(
        self,
        image: Tensor,
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the fields of the requested heads."""
        ...


@runtime_checkable
class Distance(Protocol):
    """A perceptual distance between pairs of square images in [-1, 1]; ``side`` is its input size in pixels."""

    side: int

    def __call__(self, generated: Tensor, real: Tensor) -> Tensor:
        """Return one distance per pair [n,C,side,side], [n], with a gradient for ``generated``."""
        ...


class OneDevice:
    """Exchange between the devices of a training step, for a single device: the identity.

    An objective with ``needs_global_batch`` gets such an object as ``devices``. The rows of a device are every W-th row
    of the global batch, W being the number of devices.
    """

    def mean(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the means over all devices from this device's sums and counts; no gradient passes other devices."""
        return sums / counts

    def gather(self, rows: Float[Tensor, "n *rest"]) -> Float[Tensor, "b *rest"]:
        """Return the rows of all devices in the order of the global batch.

        Gradients flow to this device's rows. They are scaled so that a loss computed alike on every device gets the
        gradient of the global batch, although gradients are averaged over the devices afterwards.
        """
        return rows


ONE_DEVICE = OneDevice()


@dataclass(frozen=True)
class EncoderRequest:
    """The frozen networks that a loss needs: ``group`` is the key of the configuration that describes them.

    With ``names``, the objective gets a dict by name, each built from ``group.<name>``. Without, it gets the object
    that ``group`` builds. With ``target``, the group is a battery (encoders/battery/), of which the objective gets the
    members ``names``, and ``targets`` by name: ``target(real, classes)`` with the ``RealFeatures`` in that encoder.

    Args:
        needs: what ``target`` needs of the real features (discrepancies/real_features.py).
        held_out: number of held-out images whose features it needs too.
    """

    group: str
    names: tuple[str, ...] | None = None
    target: Callable[..., Any] | None = None
    needs: tuple[str, ...] = ()
    held_out: int = 0


@dataclass(frozen=True)
class Passes:
    """Passes of a training step per image: for each part the number of times that trunk ("trunk") and heads run.

    ``guidance`` is without a graph, ``values`` with one, ``tangent`` the forward-mode derivative.
    """

    guidance: Mapping[str, Number]
    values: Mapping[str, Number]
    tangent: Mapping[str, Number]


@dataclass(frozen=True)
class Description:
    """What ``info`` and ``benchmark`` print about an objective, as formulas and words.

    Args:
        conversion: from the network's output to the loss space, as in "x -> u = (z - x) / clip(t, 0.05, 1) -> V".
        target: formula of the regression target, from the data.
        compared: the target in words.
        velocity: the source of v, and guidance.
        weights: weights of further loss terms, by name.
        timed: names of the ``record_function`` labels inside the loss that ``benchmark what=step`` times.
        official: the passes of the method's official code, for comparison; None if unknown.
    """

    conversion: str
    target: str = ""
    compared: str = ""
    velocity: str = ""
    weights: Mapping[str, Number] = field(default_factory=dict)
    timed: tuple[str, ...] = ()
    official: Passes | None = None


@runtime_checkable
class Objective(Protocol):
    """All that the package uses of an objective. ``ObjectiveBase`` documents every member and has its default."""

    heads: Sequence[str]
    data: DataKind
    config_groups: Sequence[str]
    images_per_label: int
    class_weights: Sequence[Number] | None
    encoder_request: EncoderRequest | None
    needs_global_batch: bool
    splits_batch: bool
    passes_conditions: bool
    samplers: Sequence[str]
    sampling_heads: Sequence[str]
    reconstructs: bool
    loss_note: str
    search_preset: str | None
    changeable_fields: Sequence[str]
    fields_without_effect: Sequence[str]
    mapping_fields: Sequence[str]
    without_classes: Mapping[str, Number]

    draw: Callable[..., Any]
    __call__: Callable[..., Losses]
    initial_state: Callable[..., State]
    next_state: Callable[..., State]
    check_data: Callable[..., None]
    nfe_per_velocity: Callable[..., int]
    sampling_conditions: Callable[..., dict[str, Tensor]]
    encoder_note: Callable[..., str | None]
    describe: Callable[..., Description]
    counted: Callable[..., tuple["Objective", Any]]
    with_activation_checkpointing: Callable[..., "Objective"]
    textbook_loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]


class ObjectiveBase:
    """Defaults of an objective. A subclass is a frozen dataclass whose fields are the keys of ``objective`` in conf.

    A subclass writes

    - ``draw(batch, seed, step, shard=None)``: the random numbers of one shard (``utils.rng.BatchRows``) of the global
      batch of step ``step``, as a dataclass of tensors. Each number must depend only on (seed, step, global row);
    - ``__call__(network, batch, draws, encoders=None)``: the ``Losses``. Gradients flow through ``encoders``, which are
      frozen. It also takes ``state`` if ``initial_state`` returns tensors, and ``devices`` (see ``OneDevice``) if
      ``needs_global_batch`` is set;
    - for a generator ``samplers``, ``noise_scale`` (standard deviation of the initial noise) and what these call:
      "one_step" ``one_step(network, noise, y, omega, **conditions) -> images``, "heun" and "euler"
      ``ode_velocity(network, z, t, y, omega, t_min, t_max, **conditions) -> dz/dt``, and "average"
      ``average_velocity(network, z, t, r, omega, t_min, t_max, y, **conditions) -> u``, with ``conditions`` of
      ``sampling_conditions``.

    A subclass overrides an attribute of the class by another (``ClassVar``) or by a property. None of its dataclass
    fields may have the name of a member below, since a field would take its default from here.

    Attributes:
        heads: heads of the backbone that are trained; others are not built.
        data: kind of a batch: "images" (``Batch``), "class_queues" (``QueueBatch``) or "labels" (``LabelBatch``).
        config_groups: keys at the top of the configuration that the objective needs, such as "queues".
        images_per_label: images that the network makes for one row of a batch; ``batch`` in the configuration counts
            images.
        class_weights: weights with which data="labels" draws the classes; None: all equal.
        encoder_request: the frozen networks of the loss; None: no encoders.
        needs_global_batch: whether the loss is not a mean over rows. Then a step has one micro-batch, and the objective
            gets ``devices``.
        splits_batch: whether an objective that needs the global batch divides it itself into parts of
            ``micro_batch`` images, which is then its field.
        passes_conditions: whether the network gets ``Batch.conditions`` in every pass of the loss.
        sampling_heads: the heads that samplers use; the others are only trained.
        samplers: names of the samplers, the default one first; empty: no generator, such as an autoencoder.
        reconstructs: whether an objective without samplers has ``reconstructions`` and ``held_out_metrics``, for image
            grids (training/callbacks/reconstructions.py).
        loss_note: a line about the loss, printed at the start of a run.
        search_preset: the preset whose recipe lists what search_guidance tries, for configurations that list nothing.
        changeable_fields: names of the dataclass fields that a resumed run may change.
        fields_without_effect: those among them that do not change the results of a run.
        mapping_fields: fields that are mappings with names of the user.
        without_classes: options of the configuration with their values for data of one class, where no label is dropped
            and there is nothing to guide towards.
    """

    heads: ClassVar[Sequence[str]] = ("u",)
    data: ClassVar[DataKind] = "images"
    config_groups: ClassVar[Sequence[str]] = ()
    images_per_label: ClassVar[int] = 1
    class_weights: ClassVar[Sequence[Number] | None] = None
    encoder_request: ClassVar[EncoderRequest | None] = None
    needs_global_batch: ClassVar[bool] = False
    splits_batch: ClassVar[bool] = False
    passes_conditions: ClassVar[bool] = False
    samplers: ClassVar[Sequence[str]] = ()
    reconstructs: ClassVar[bool] = False
    loss_note: ClassVar[str] = ""
    search_preset: ClassVar[str | None] = None
    changeable_fields: ClassVar[Sequence[str]] = ()
    fields_without_effect: ClassVar[Sequence[str]] = ()
    mapping_fields: ClassVar[Sequence[str]] = ()
    without_classes: ClassVar[Mapping[str, Number]] = {}

    @property
    def sampling_heads(self) -> Sequence[str]:
        """All heads."""
        return self.heads

    def initial_state(self, network: Network, encoders: Any, seed: int) -> State:
        """Return the state before the first step, tensors by name on the CPU or the device; {}: it has no state.

        Called once at the start of a run, without gradient, alike on all devices. It must not depend on the device.
        The state is passed to every call as ``state``, saved in checkpoints and restored on resume.
        """
        return {}

    def next_state(self, state: State, observed: Mapping[str, Tensor], step: int) -> State:
        """Return the state after step ``step`` (from 0), with the names, shapes and dtypes of ``state``.

        ``observed`` are the values of ``Losses.observed`` of all micro-batches and devices, in the order of the global
        batch. Called once per optimiser step, alike on all devices, and not in steps skipped for non-finite values.
        """
        return state

    def check_data(self, *, latents: bool, flip: bool, name: str) -> None:
        """Raise ValueError if the data named ``name`` do not fit: ``latents``, or pixels that are mirrored (``flip``).

        For objectives that augment images themselves.
        """

    def nfe_per_velocity(self, t: float, omega: Number, t_min: Number, t_max: Number) -> int:
        """Return the network evaluations per image of one velocity, or one step, at time t."""
        return 1

    def sampling_conditions(self, seed: int, first: int, count: int) -> dict[str, Tensor]:
        """Return random conditions, [count,...] by name, of images first ... first + count - 1.

        Those of image i must depend only on (seed, i).
        """
        return {}

    def encoder_note(self, encoders: Any) -> str | None:
        """Return a line about the encoders, printed at the start of a run; None: nothing is printed."""
        return None

    def describe(self) -> Description:
        """Return what ``info`` and ``benchmark`` print about the objective."""
        return Description(f"{', '.join(self.heads)}, the network's output, as {type(self).__name__} uses it")

    def counted(self) -> tuple[Objective, Any]:
        """Return the objective and the encoders with which memory, FLOPs and times of a step are measured.

        Encoders that are large or need weights are left out. The returned objective is called without ``state``.
        """
        return self, None

    def with_activation_checkpointing(self) -> Objective:
        """Return the objective for a network that recomputes its activations."""
        return self

    def textbook_loss(self, network: Network, batch: AnyBatch, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and ``per_sample`` sums of the unoptimised algorithm, for ``benchmark against=textbook``.

        Raises ValueError if there is none.
        """
        raise ValueError(f"{type(self).__name__} has no textbook step")


def check_contract(objective: Any) -> None:
    """Raise ValueError, in one line, for missing members of an objective, an unknown sampler, or unknown data."""
    kind, samplers = type(objective).__name__, getattr(objective, "samplers", ())
    for name, value, known in (
        *(("samplers", sampler, tuple(SAMPLERS)) for sampler in samplers),
        ("data", getattr(objective, "data", "images"), get_args(DataKind)),
    ):
        if value not in known:
            raise ValueError(f"{kind}.{name}: {value!r} is not one of {', '.join(known)}")
    needed = [*Objective.__annotations__, *(SAMPLERS[sampler] for sampler in samplers)]
    needed += ["noise_scale"] if samplers else []
    needed += ["reconstructions", "held_out_metrics"] if getattr(objective, "reconstructs", False) else []
    if missing := [name for name in dict.fromkeys(needed) if not hasattr(objective, name)]:
        raise ValueError(
            f"{kind} misses {', '.join(missing)}; derive it from pmf_lightning.objectives.base.ObjectiveBase, which "
            "has the defaults"
        )
