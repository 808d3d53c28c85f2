"""What a run left in its checkpoint, by name, to be compared with another run's to the bit."""

import torch

from pmf_lightning.pipeline.checkpoints import read_checkpoint


def weights(folder):
    """The raw weights and all averages."""
    checkpoint = read_checkpoint(folder)
    groups = {"raw": checkpoint["state_dict"], **checkpoint["ema"]}
    return {f"{group}.{name}": value for group, found in groups.items() for name, value in found.items()}


def state(folder):
    """The same and the moments of the optimiser."""
    moments = read_checkpoint(folder)["optimizer_states"][0]["state"]
    named = {f"{i}.{name}": torch.as_tensor(v) for i, found in moments.items() for name, v in found.items()}
    return weights(folder) | named


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]
