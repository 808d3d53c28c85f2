"""Post-training in other ways of computing: autocast, recomputed or compiled blocks, micro-batches, a decoder."""

import json

import pytest
import torch
from common import objective, tiny_network
from matching import CLASSES, WIDTH, battery, label_batch, matching, network, real
from processes import python

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.battery.battery import FEATURES, Battery
from pmf_lightning.models.activation_checkpointing import recompute_blocks
from pmf_lightning.objectives.base import LabelBatch

FLOAT32 = torch.float32


def step(law, net, called=None):
    """The loss of step 0 in float32, and the gradients of the weights as one vector; ``called`` stands for ``net``."""
    encoders, given = battery(law, FLOAT32), label_batch()
    state = law.initial_state(net, encoders, 0)
    net.zero_grad()
    losses = law(called or net, given, law.draw(given, 0, 0), encoders, state=state)
    losses.total.backward()
    return losses.total.item(), torch.cat([weight.grad.flatten() for weight in net.parameters()])


def alike(one, other):
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0).item()


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_autocast_changes_the_loss_little(micro_batch):
    """precision=bf16-mixed: passes that are repeated in the backward pass are under autocast as well."""
    law, net = matching(micro_batch=micro_batch), network(dtype=FLOAT32)
    loss, gradient = step(law, net)
    with torch.autocast("cpu", torch.bfloat16):
        half, of_half = step(law, net)
    assert half == pytest.approx(loss, rel=1e-2)
    assert not torch.equal(of_half, gradient)
    assert alike(of_half, gradient) > 0.99


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_activation_checkpointing_changes_nothing(micro_batch):
    law, plain, saving = matching(micro_batch=micro_batch), network(dtype=FLOAT32), network(dtype=FLOAT32)
    assert recompute_blocks(saving) == 2
    loss, gradient = step(law, plain)
    again, of_again = step(law.with_activation_checkpointing(), saving)
    assert again == loss
    assert torch.equal(of_again, gradient)


class Means(Encoder):
    """Tanh of a linear map of 8 x 8 averages of the pixels."""

    def __init__(self, name):
        super().__init__()
        weight = torch.randn(3 * 64, WIDTH, generator=torch.Generator().manual_seed(len(name)))
        self.weight = torch.nn.Parameter(weight / 14)
        self.freeze()

    def encode(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images, 8)
        return {FEATURES: (small.flatten(1) @ self.weight).tanh()}


@pytest.mark.slow
def test_the_gradient_of_latents_passes_the_frozen_autoencoder(tmp_path):
    """iMF's u-prediction in latents of 4 x 8 x 8, decoded to 64 pixels by an autoencoder of the kind of SD-VAE."""
    pytest.importorskip("diffusers")
    from test_latents import ARCHITECTURE, decoder

    from pmf_lightning.models import sd_vae

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sd_vae._autoencoder()(**ARCHITECTURE).save_pretrained(tmp_path)
    opened = decoder(tmp_path)
    before = {name: value.clone() for name, value in opened.vae.state_dict().items()}
    law = matching(generator=objective(prediction="u", v_target="plain", time_order="sort_then_tie"))
    net = tiny_network(FLOAT32, channels=4, heads={"u": 1})
    encoders = Battery({name: Means(name) for name in law.encoders}, opened)
    encoders.targets = {name: law.target(real(name), CLASSES) for name in law.encoders}
    given = LabelBatch(torch.arange(12) % CLASSES, (4, 8, 8))
    state, draws = law.initial_state(net, encoders, 0), law.draw(given, 0, 0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = [law(net, given, draws, encoders, state=state) for _ in range(1)]
    losses[0].total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    assert sum(weight.grad.norm() for weight in net.parameters()) > 0
    for frozen in (opened.vae, encoders):
        assert all(weight.grad is None for weight in frozen.parameters())
    optimizer.step()
    losses.append(law(net, given, draws, encoders, state=state))
    assert sum(losses[1].scalars.values()) < sum(losses[0].scalars.values())
    assert all(torch.equal(value, before[name]) for name, value in opened.vae.state_dict().items())


@pytest.mark.slow
def test_the_compiled_network_has_the_same_gradients():
    """In an interpreter of its own, as torch.compile cannot look through the checks of shapes."""
    done = python(__file__)
    assert done.returncode == 0, done.stderr[-3000:]
    loss, compiled, alike = json.loads(done.stdout.strip().splitlines()[-1])
    assert compiled == pytest.approx(loss, rel=1e-5)
    assert alike > 1 - 1e-6


def compiled_step():
    from pmf_lightning.objectives.jvp.compiled import CompiledNetwork

    law, net = matching(micro_batch=5), network(dtype=FLOAT32)
    loss, gradient = step(law, net)
    fast, of_fast = step(law, net, CompiledNetwork(net, "aot_eager"))
    return [loss, fast, alike(gradient, of_fast)]


if __name__ == "__main__":
    print(json.dumps(compiled_step()))
