"""Cache of small trained networks: read from the cache folder, or trained again if missing or damaged."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from pmf_lightning.encoders.base import checksum
from pmf_lightning.utils.cache import atomic_write, sole_writer
from pmf_lightning.utils.tensor_files import load_tensors

log = logging.getLogger(__name__)
Trained = TypeVar("Trained", bound=nn.Module)


def load_or_train(path: Path, empty: Callable[[], Trained], trained: Callable[[], Trained], what: str) -> Trained:
    """Return the frozen network with the weights at ``path``, or that of ``trained()``, which is written there.

    ``empty()`` returns a network to load weights into. ``what`` is its name in the notices that it is
    trained and that a damaged file is replaced.
    """
    with sole_writer(path):
        network = _load(path, empty(), what) if path.exists() else None
        if network is None:  # the bar of the training is shown on terminals only
            print(f"{what} is trained on these data once, and stored in {path}", file=sys.stderr, flush=True)
            network = trained()
            with atomic_write(path) as partial:
                torch.save({"weights": network.state_dict(), "checksum": checksum(network)}, partial)
    return network.requires_grad_(False).eval()


def _load(path: Path, network: Trained, what: str) -> Trained | None:
    try:
        stored = load_tensors(path)
        network.load_state_dict(stored["weights"])
        if stored["checksum"] != checksum(network):
            raise ValueError("checksum")
    except Exception as reason:  # torch may raise any error for a damaged file
        log.warning("%s is damaged (%s): training %s again", path, type(reason).__name__, what)
        return None
    return network
