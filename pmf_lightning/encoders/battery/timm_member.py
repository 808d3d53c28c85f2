"""Encoders from ``timm``: every name of a network with weights there, with the preprocessing that timm states for it.

The batteries of FD-loss and RDM are such encoders, with the settings of the papers (conf/encoder).
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import load_state_dict_from_hf
from torch import Tensor, nn

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.base import three_channels
from pmf_lightning.encoders.battery.member import Images, Member, Vectors, normalised, number_of_weights, resized
from pmf_lightning.encoders.pretrained import PretrainedWeights
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.precision import Number

POOLS = ("head", "token", "patches", "map")
INTERPOLATIONS = ("bicubic", "bilinear")


class TimmMember(Member):
    """A network of timm without its classifier, as an encoder of one vector per image.

    Args:
        model: timm's name with the tag of its weights, such as vit_large_patch16_224.mae.
        name: name in error messages.
        weights: path of the state dict (.safetensors or torch), in timm's names or those of the original release that
            timm converts; None: timm's cache, or its download.
        side: input size in pixels; None: timm's. The whole image is resized to it: no crop. A vision transformer takes
            any size: its positions are interpolated, and the normalised image is padded with zeros on the right and
            below to a multiple of the patch.
        mean, std: per channel, of colours in [0, 1]; None: timm's.
        interpolation: rule of the resize, with antialiasing; None: timm's.
        pool: "head", timm's own pooling, which is the attention-pool head where the network has one; "token", the first
            token after the last norm; "patches", the mean of the tokens without prefix; "map", the mean over the places
            of a convolutional network's last map, without the norm of its head.
        width: expected numbers per image; None: not checked.
        option: key of this encoder in error messages; None: battery.members.<name>.

    Grey images are repeated to three channels. Raises UserError if the weights are missing or do not fit, or for
    settings that the network does not take.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str = "timm",
        weights: str | None = None,
        side: int | None = None,
        mean: Sequence[Number] | None = None,
        std: Sequence[Number] | None = None,
        interpolation: str | None = None,
        pool: str = "head",
        width: int | None = None,
        option: str | None = None,
    ):
        super().__init__()
        self.model, self.option = model, option or f"battery.members.{name}"
        known = preprocessing(model, self.option)
        self.input_side = side or known["side"]
        self.mean, self.std = tuple(mean or known["mean"]), tuple(std or known["std"])
        self.interpolation, self.pool = interpolation or known["interpolation"], pool
        for key, value, values in (("pool", pool, POOLS), ("interpolation", self.interpolation, INTERPOLATIONS)):
            if value not in values:
                raise UserError(f"{self.option}.{key}={value}: there is no such {key}; {suggestions(value, values)}")
        published = self.published(name)
        state = published.read(weights) if weights else self.default_weights(published)
        self.net = self._network(state, published, weights or model)
        self.net.to(memory_format=torch.channels_last)  # faster convolutions: EfficientNet-Lite0 by 1.2 to 1.5 on a CPU
        self.width = _width(self.net, pool)
        if width not in (None, self.width):
            raise UserError(f"{self.option}.width={width}: {model} gives {self.width} numbers with pool={pool}")
        self.facts = (model, self.input_side, self.interpolation, *self.mean, *self.std, pool)
        self.freeze()

    @classmethod
    def count(cls, settings: Mapping[str, Any], source: DataSource) -> int:
        """Return the number of weights of timm's network; UserError for an unknown name."""
        side = settings.get("side") or preprocessing(settings["model"])["side"]
        with torch.device("meta"):
            return number_of_weights(skeleton(settings["model"], side))

    def published(self, name: str) -> PretrainedWeights:
        """Return what is known of the published weights, for reading and for error messages."""
        home = timm.get_pretrained_cfg(self.model)
        return PretrainedWeights(
            name,
            f"timm's {self.model}",
            f"model.safetensors (published as {home.hf_hub_id or home.url})",
            role="encoder",
            instead=f"leave {name} out of the battery",
            option=f"{self.option}.weights",
        )

    def default_weights(self, published: PretrainedWeights) -> dict[str, Tensor]:
        """Return the weights that are taken without a path: those in timm's cache, or downloaded."""
        home = timm.get_pretrained_cfg(self.model)
        if home.hf_hub_id is None:
            raise UserError(f"{published.key} is not set: get the weights of {published.what} at {home.url}")
        return published.fetch(lambda: load_state_dict_from_hf(home.hf_hub_id, home.hf_hub_filename or _FILE))

    def in_timms_names(self, state: Mapping[str, Tensor], net: nn.Module) -> Mapping[str, Tensor]:
        """Rename the weights of an original release to timm's names; others are unchanged."""
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        try:
            return state if convert is None else convert(dict(state), net)
        except (KeyError, AttributeError, RuntimeError, ValueError):  # of another network: reported as not fitting
            return state

    def _network(self, state: Mapping[str, Tensor], published: PretrainedWeights, path: str) -> nn.Module:
        with torch.device("meta"):  # uses no memory and no global random numbers
            net = skeleton(self.model, self.input_side, self.option)
        if set(dict(net.named_buffers())) - set(net.state_dict()):  # such as the frequencies of RoPE, not in files
            with torch.random.fork_rng(devices=[]):
                net = skeleton(self.model, self.input_side, self.option)
        published.fill(net, self.in_timms_names(state, net), path)
        return net

    def preprocess(self, images: Images) -> Float[Tensor, "n 3 {self.input_side} {self.input_side}"]:
        """Return the network's input, [n, 3, side, side], from images in [-1, 1]."""
        colours = three_channels(images) / 2 + 0.5
        return normalised(resized(colours, self.input_side, self.interpolation), self.mean, self.std)

    def maps(self, images: Images) -> list[Float[Tensor, "n _c _h _w"]]:
        """Return the last feature map of every stride, finest first; ValueError unless the network has them."""
        like = next(self.net.parameters())
        if not hasattr(self.net, "forward_intermediates"):
            raise ValueError(f"{self.option}.model={self.model}: timm gives no feature maps of it")
        return self.net.forward_intermediates(self.preprocess(images.to(like.dtype)), intermediates_only=True)

    def vectors(self, images: Images) -> Vectors:
        """Return one vector per image."""
        like = next(self.net.parameters())
        found = self.net.forward_features(self.preprocess(images.to(like.dtype)))
        if self.pool == "token":
            return found[:, 0]
        if self.pool == "patches":
            return found[:, self.net.num_prefix_tokens :].mean(1)
        return found.mean((2, 3)) if self.pool == "map" else self.net.forward_head(found, pre_logits=True)


_FILE = "model.safetensors"


def preprocessing(model: str, option: str = "battery.members.timm") -> dict:
    """Return side, mean, std and interpolation that timm states for ``model``; UserError for an unknown name."""
    try:
        known = timm.get_pretrained_cfg(model)
    except RuntimeError:
        known = None
    if known is None:
        names = timm.list_models(pretrained=True) if "." in model else timm.list_models()
        raise UserError(f"{option}.model={model}: timm has no such network; {suggestions(model, names)[:200]}")
    return {name: getattr(known, name) for name in ("mean", "std", "interpolation")} | {"side": known.input_size[-1]}


def skeleton(model: str, side: int, option: str = "battery.members.timm") -> nn.Module:
    """Return the network without classifier and without its weights, on the current device, for images of ``side``.

    Raises UserError if the network only takes images of another size.
    """
    try:  # transformers take other sizes than their own only if asked
        return timm.create_model(model, num_classes=0, dynamic_img_size=True, dynamic_img_pad=True)
    except TypeError:
        known = timm.get_pretrained_cfg(model)
        if known.fixed_input_size and side != known.input_size[-1]:
            raise UserError(f"{option}.side={side}: {model} takes {known.input_size[-1]} pixels only") from None
        return timm.create_model(model, num_classes=0)


def timm_width(model: str, pool: str, option: str) -> int:
    """Return the numbers per image of a network of timm, without its weights; UserError for an unknown name."""
    side = preprocessing(model, option)["side"]
    with torch.device("meta"):
        return _width(skeleton(model, side, option), pool)


def _width(net: nn.Module, pool: str) -> int:
    return getattr(net, "head_hidden_size", net.num_features) if pool == "head" else net.num_features
