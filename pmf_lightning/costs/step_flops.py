"""The arithmetic of a training step, counted operation by operation on the meta device."""

from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pmf_lightning.costs.blank_steps import Rivals, further_arguments, without_perceptual, without_values
from pmf_lightning.draws import Shard


def step_flops(network: nn.Module, objective: Any, micro_batch: int, shard: Shard, rivals: Rivals = (1, 0)) -> int:
    """Return the floating-point operations (2 per multiply-add) of loss and gradients of one micro-batch.

    Products of matrices, convolutions and attention are counted, forwards, backwards and along tangents, as this
    package runs them; ``network`` must be on the meta device. Perceptual networks and encoders are left out.
    """
    objective = without_perceptual(objective)
    batch, draws = without_values(network, objective, micro_batch, shard, rivals)
    with FlopCounterMode(display=False) as counter:
        objective(network, batch, draws, **further_arguments(objective)).total.backward()
    network.zero_grad()
    return counter.get_total_flops()
