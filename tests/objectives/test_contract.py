"""The contract of objectives and data sources: missing members are one line; state, labels, encoders with gradient."""

from dataclasses import fields

import pytest
import torch
from common import CLASSES
from lightning import Callback
from ranks import together
from shrunk import RUN
from toy_objective import BATCH, MeanMatching, toy_run

from pmf_lightning import Drifting, JiT, PixelMeanFlow, UserError, build, compose
from pmf_lightning.data.datamodule import LabelData
from pmf_lightning.data.dataset import DataSourceBase, check_source
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.distributed.collectives import gather_rows
from pmf_lightning.objectives.base import Objective, ObjectiveBase, check_contract
from pmf_lightning.objectives.masked_autoencoder import MaskedAutoencoder
from pmf_lightning.profiling.benchmarks.step import make_bench
from pmf_lightning.profiling.model_facts import find_facts
from pmf_lightning.utils.rng import BatchRows


class Incomplete(ObjectiveBase):
    samplers = ("heun", "one_step")

    def draw(self, batch, seed, step, shard=None):
        pass


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_missing_members_are_one_line():
    check_contract(MeanMatching())
    assert isinstance(MeanMatching(), Objective)
    with pytest.raises(
        ValueError, match=r"^Incomplete misses __call__, ode_velocity, one_step, noise_scale; derive it"
    ):
        check_contract(Incomplete())
    with pytest.raises(
        ValueError, match=r"object misses heads, data, .* textbook_loss; derive it from .*ObjectiveBase"
    ):
        check_contract(object())
    with pytest.raises(ValueError, match=r"Other\.samplers: 'rk4' is not one of average, heun, euler, one_step"):
        check_contract(type("Other", (Incomplete,), {"samplers": ("rk4",)})())
    with pytest.raises(ValueError, match=r"Other\.data: 'videos' is not one of images, class_queues, labels"):
        check_contract(type("Other", (Incomplete,), {"data": "videos"})())
    check_source(Digits("digits", 32, 1, 10, 360))
    with pytest.raises(UserError, match=r"data: Bare misses name, .* fingerprint; derive it from .*DataSourceBase"):
        check_source(type("Bare", (DataSourceBase,), {})())


def test_every_member_of_the_contract_has_a_default_or_must_be_written():
    own = {name for name in vars(ObjectiveBase) if not name.startswith("_")}
    assert Objective.__annotations__.keys() - own == {"draw", "__call__"}
    assert own <= Objective.__annotations__.keys()


@pytest.mark.parametrize("kind", [PixelMeanFlow, JiT, Drifting, MaskedAutoencoder])
def test_what_a_class_says_of_its_fields_is_about_fields(kind):
    own = {field.name for field in fields(kind)}
    assert {*kind.changeable_fields, *kind.fields_without_effect, *kind.mapping_fields} <= own
    assert not own & vars(ObjectiveBase).keys(), "such a field would take its default from the base class"


def test_labels_without_images_are_keyed_and_weighted():
    data = LabelData(CLASSES, 3, 600, None, (1, 1, 2, 0, 1))
    first, second = (next(data.stream((BatchRows(),), step))[0] for step in (0, 1))
    shares = torch.bincount(first, minlength=CLASSES) / 600
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.2, 0.4, 0.0, 0.2]), atol=0.06, rtol=0)
    assert not torch.equal(first, second)
    parts = data.stream((BatchRows(1, 4), BatchRows(3, 4)), 1)
    assert [part[0].tolist() for part in (next(parts), next(parts))] == [second[1::4].tolist(), second[3::4].tolist()]
    with pytest.raises(UserError, match="2 numbers for 5 classes"):
        LabelData(CLASSES, 0, 8, None, (1, 1))


def test_rows_of_micro_batches_are_in_the_order_of_the_batch():
    rows = torch.arange(12)
    assert torch.equal(gather_rows([rows[BatchRows(m, 3).rows(4)] for m in range(3)]), rows)


def test_state_is_saved_and_resumes_bit_for_bit(tmp_path):
    weights, state = toy_run(4, tmp_path)
    assert state["steps"] == 4
    _, early = toy_run(2, tmp_path)
    assert not torch.equal(early["mean"], state["mean"])
    again, resumed = toy_run(4, tmp_path, ckpt_path=f"{tmp_path}/2.ckpt")
    assert equal(again, weights)
    assert equal(resumed, state)
    parts, of_parts = toy_run(4, tmp_path, micro_batch=BATCH // 4)  # the state advances once per step all the same
    assert of_parts["steps"] == 4
    torch.testing.assert_close(of_parts["mean"], state["mean"], rtol=1e-5, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-6, msg=name)


class Skip(Callback):
    """Skips the second step as SkipNonFinite does."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for weight in pl_module.parameters() if trainer.global_step == 1 else ():
            weight.grad = None


def test_a_skipped_step_does_not_advance_the_state(tmp_path):
    assert toy_run(3, tmp_path, callback=Skip())[1]["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("joint", [False, True])
def test_two_processes_have_one_state_and_the_gradient_of_the_whole_batch(joint, tmp_path):
    weights, state = together(1, toy_run_on, 1, str(tmp_path), joint)[0]
    for mine, own in together(2, toy_run_on, 2, str(tmp_path), joint):
        torch.testing.assert_close(own["mean"], state["mean"], rtol=1e-6, atol=1e-7)
        assert own["steps"] == state["steps"] == 3
        for name, weight in weights.items():
            torch.testing.assert_close(mine[name], weight, rtol=1e-5, atol=1e-7, msg=name)


def toy_run_on(devices, folder, joint):
    return toy_run(3, folder, devices=devices, joint=joint)


def test_info_and_benchmark_know_a_new_objective():
    cfg = compose([*RUN, "model=drifting_tiny", "batch=8", "micro_batch=4"], "info")
    cfg.conditions = {"label": {"kind": "class", "tokens": 2}}
    cfg.objective = {"_target_": "toy_objective.MeanMatching", "noise_scale": 1.0, "decay": 0.5, "joint": False}
    facts = find_facts(cfg)
    assert facts.prediction == "u, the network's output, as MeanMatching uses it"
    blocks = sum(facts.blocks.values())
    assert (facts.block_forwards.values, facts.block_forwards.backward) == (blocks, 2 * blocks)
    assert (facts.memory.micro_batch, facts.official) == (4, None)
    assert facts.memory.activations > 0
    bench = make_bench(build(cfg), 4, torch.device("cpu"), "32-true", False, 1)
    assert bench.images == 4
    assert bench.gradients(bench.loss).norm() > 0
    with pytest.raises(ValueError, match="MeanMatching has no textbook step"):
        bench.textbook()
