"""torch.compile for the passes of a training step, which fuses the operations between matrix products.

Passes without a derivative are compiled directly. The derivative is compiled together with its values and its tape
(forward_mode.py), because a tensor subclass cannot enter a compiled region from outside. Weights and their names are
unchanged, so checkpoints are independent of compilation.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from pmf_lightning.objectives.jvp import forward_mode


class CompiledNetwork:
    """A network whose passes are compiled at first use, with a dynamic batch size.

    Args:
        network: the backbone.
        backend: of torch.compile; "inductor" runs fast, "aot_eager" compiles fast and runs no faster than eager mode.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor"):
        self.network, self.classes = network, network.classes
        self._forward = torch.compile(network.forward, backend=backend, dynamic=True)
        self.derivative: Callable = torch.compile(forward_mode.derivative, backend=backend)

    def __call__(
        self,
        image: Tensor,
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the fields of the requested heads."""
        forward = self.network if torch.compiler.is_compiling() else self._forward
        return forward(image, conditions, heads=heads, attention=attention)
