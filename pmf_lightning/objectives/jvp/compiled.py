"""The passes of a training step through torch.compile: fewer trips to memory between the products of matrices.

Passes without a derivative are compiled as they are. The derivative is compiled together with the values beside it
(forward_mode.py), tape and all: a tensor subclass cannot enter a compiled region from outside. The weights and their
names stay those of the network, so that checkpoints do not know of any of this.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from pmf_lightning.objectives.jvp import forward_mode


class CompiledNetwork:
    """A network whose passes are compiled at their first use; the number of images in a pass may change.

    Args:
        network: the backbone.
        backend: of torch.compile; "inductor" is the fast one, "aot_eager" compiles fast and runs no faster than before.
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
        """Return the fields of the heads asked for."""
        forward = self.network if torch.compiler.is_compiling() else self._forward
        return forward(image, conditions, heads=heads, attention=attention)
