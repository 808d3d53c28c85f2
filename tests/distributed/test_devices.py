"""Several devices train as one does: two processes over gloo, started as torchrun starts them."""

import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from lightning import Callback, Trainer
from matplotlib import pyplot as plt
from ranks import together
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training import fit

from pmf_lightning import MuonAdam, UserError, compose, train
from pmf_lightning.config import validate
from pmf_lightning.config.compose import CONF
from pmf_lightning.distributed import strategies
from pmf_lightning.distributed.dtensor import full_tensor
from pmf_lightning.distributed.strategies import OLDEST_FSDP, FullySharded, fsdp, refuse_old_torch, trainer_options
from pmf_lightning.objectives.jvp.forward_mode import derivative
from pmf_lightning.objectives.jvp.fsdp_hooks import open_duals
from pmf_lightning.optim.distributed_muon import assign, chunks
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.training import run_dir
from pmf_lightning.training.prepare import run_request, training_settings
from pmf_lightning.utils import rng
from pmf_lightning.utils.hydra_compat import VERSION_BASE

OLD = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < OLDEST_FSDP
NEEDS_FSDP = pytest.mark.skipif(OLD, reason="FSDP2 takes forward-mode derivatives from torch 2.13")

MODELS = ["pmf_tiny", "imf_digits", "jit_tiny", "drifting_tiny", "mae_tiny"]
DRIFTING = ["objective.samples_per_label=8"]  # images of a label: each of the two ranks takes one label


DRAWN = ["sample_grid.enabled=true", "sample_grid.every_images=48"]


def runs(folder, kind, models, steps, at, micro_batch="null"):
    """On this process: train ``models`` one after the other."""
    more = [f"trainer={kind}", f"steps={steps}", f"micro_batch={micro_batch}"]
    drifting = {"drifting_tiny": DRIFTING}
    return [fit(m, f"{folder}/{kind}-{m}-{micro_batch}", *more, *drifting.get(m, []), at=at) for m in models]


def apart(a, b):
    """The L2 norm of the difference of two sets of tensors, relative to the first."""
    assert a.keys() == b.keys()
    difference = sum((a[name] - b[name]).double().square().sum() for name in a)
    return math.sqrt(difference / sum(value.double().square().sum() for value in a.values()))


def moved(run, steps, start=None):
    """How the weights moved from those that the run started with, or from ``start``."""
    start = start or run.weights[0]
    return {name: value - start[name] for name, value in run.weights[steps].items()}


def check_alike(one, first, second, steps):
    """One process and the two ranks have the same first gradients and losses, and the ranks end the same."""
    assert (one.world_size, first.world_size, second.world_size) == (1, 2, 2)
    assert all(gradient.any() for gradient in one.gradients[1].values())
    assert apart(one.gradients[1], first.gradients[1]) < 1e-6
    assert apart(one.gradients[1], second.gradients[1]) < 1e-6
    assert not [n for n, value in first.weights[steps].items() if not torch.equal(value, second.weights[steps][n])]
    assert first.losses[0] == pytest.approx(one.losses[0], rel=1e-6)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """pMF for four steps on one process."""
    return together(1, runs, str(tmp_path_factory.mktemp("one")), "cpu", ["pmf_tiny"], 4, (4,))[0][0]


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=NEEDS_FSDP)])
def test_two_processes_train_as_one(one, kind, tmp_path):
    first, second = (found[0] for found in together(2, runs, str(tmp_path), kind, ["pmf_tiny"], 4, (4,)))
    check_alike(one, first, second, steps=4)
    assert apart(one.weights[4], first.weights[4]) < 1e-5
    assert apart(moved(one, 4), moved(first, 4)) < 1e-4
    assert first.losses == pytest.approx(one.losses, rel=1e-5)
    assert 0 in first.barriers  # the others are of a checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=NEEDS_FSDP)])
def test_all_objectives_train_alike_for_twenty_steps(kind, tmp_path):
    limit = {"timeout": 800}  # twice that is less than pytest's own limit, which would not tell where the ranks are
    singles = together(1, runs, str(tmp_path), "cpu", MODELS, 20, (20,), **limit)[0]
    pairs = zip(*together(2, runs, str(tmp_path), kind, MODELS, 20, (20,), **limit), strict=True)
    for model, single, (first, second) in zip(MODELS, singles, pairs, strict=True):
        check_alike(single, first, second, steps=20)
        if model != "mae_tiny":  # whose first steps multiply differences of rounding by thousands
            assert apart(single.weights[20], first.weights[20]) < 1e-5, model
            assert apart(moved(single, 20), moved(first, 20)) < 1e-3, model
            assert first.losses == pytest.approx(single.losses, rel=1e-4), model


def post_trained(folder, kind):
    """On this process: two steps of FD-loss in pixels, from a generator that has learnt nothing."""
    short = ["steps=2", f"trainer={kind}", "posttrain=fd_loss", "posttrain.encoders=[pixels8]"]
    return fit("pmf_tiny", f"{folder}/{kind}", *short, "posttrain.discrepancy.rows=64", "data=digits", at=(2,))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=NEEDS_FSDP)])
def test_post_training_on_two_processes_is_that_on_one(kind, tmp_path):
    single = together(1, post_trained, str(tmp_path), "cpu")[0]
    first, second = together(2, post_trained, str(tmp_path), kind)
    check_alike(single, first, second, steps=2)
    assert apart(single.weights[2], first.weights[2]) < 1e-5


@pytest.mark.slow
def test_two_processes_are_one_with_two_micro_batches_to_the_last_bit(tmp_path):
    """The autoencoder, which shows any difference: the sums over two halves of the batch are the same sums."""
    single = together(1, runs, str(tmp_path), "cpu", ["mae_tiny"], 5, (5,), 8)[0][0]
    first, _ = (found[0] for found in together(2, runs, str(tmp_path), "ddp", ["mae_tiny"], 5, (5,)))
    assert not [n for n, value in first.weights[5].items() if not torch.equal(value, single.weights[5][n])]


def in_turns(folder):
    """On two ranks: with weights in parts, then on from step 2 with whole ones, then on from step 3 in parts again."""
    two, three = Path(folder) / "two.ckpt", Path(folder) / "three.ckpt"
    # which must not stay in the network that training gives back
    short = ["steps=4", "activation_checkpointing=true", "ema.device=cpu"]
    run = fit("pmf_tiny", f"{folder}/parts", "trainer=fsdp", *short, *DRAWN, at=(4,), keep={2: two}, finish=True)
    dist.barrier()
    whole_again = fit("pmf_tiny", f"{folder}/whole", "trainer=ddp", "steps=4", f"ckpt={two}", at=(4,), keep={3: three})
    dist.barrier()
    parts_again = fit("pmf_tiny", f"{folder}/again", "trainer=fsdp", "steps=4", f"ckpt={three}", at=(4,))
    return run, whole_again, parts_again


def go_on(saved, folder):
    return fit("pmf_tiny", folder, "steps=4", f"ckpt={saved}", *DRAWN, at=(4,), finish=True)


@NEEDS_FSDP
@pytest.mark.slow
def test_a_run_in_parts_goes_on_whole_and_the_other_way_round(one, tmp_path):
    in_parts_or_whole = together(2, in_turns, str(tmp_path))[0]
    alone = together(1, go_on, str(tmp_path / "two.ckpt"), str(tmp_path / "alone"))[0]
    for run in [*in_parts_or_whole, alone]:
        assert apart(moved(one, 4), moved(run, 4, start=one.weights[0])) < 1e-4
    saved = read_checkpoint(tmp_path / "two.ckpt")
    assert all(type(value) is torch.Tensor for value in saved["state_dict"].values())
    weights = {name.removeprefix("network."): value.shape for name, value in saved["state_dict"].items()}
    for average in saved["ema"].values():
        assert {name: value.shape for name, value in average.items()} == weights
    for name in ("0000000048-2k.png", "final.png"):  # drawn while weights are in parts, and after
        drawn, wanted = (plt.imread(tmp_path / run / "grids" / name) for run in ("parts", "alone"))
        assert abs(drawn - wanted).max() < 0.01, name


class Injury(Callback):
    """Hurts the training of one rank."""

    def __init__(self, what: str):
        self.what, self.rank = what, int(os.environ["RANK"])

    @torch.no_grad()
    def setup(self, trainer, pl_module, stage):
        if self.what == "start" and self.rank == 1:
            next(pl_module.network.parameters()).mul_(1.01)

    @torch.no_grad()
    def on_train_start(self, trainer, pl_module):
        if self.what == "no sync":
            trainer.strategy.model.require_backward_grad_sync = False
        if self.what == "weights" and self.rank == 1:
            next(pl_module.network.parameters()).mul_(1.01)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.what == "nan" and self.rank == 1 and batch_idx == 1:
            pl_module.objective = _Spoiled(pl_module.objective)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if isinstance(pl_module.objective, _Spoiled):
            pl_module.objective = pl_module.objective.whole
        if self.what == "overflow" and batch_idx == 2:
            next(pl_module.network.parameters()).data.fill_(math.inf)


class _Spoiled:
    def __init__(self, objective):
        self.whole = objective

    def __getattr__(self, name):
        return getattr(self.whole, name)

    def __call__(self, *arguments, **more):
        losses = self.whole(*arguments, **more)
        object.__setattr__(losses, "total", losses.total * math.nan)
        return losses


def injured(folder, kind, what, *overrides):
    short = [f"trainer={kind}", "steps=3", *overrides]
    try:
        return fit("pmf_tiny", f"{folder}/{what}", *short, at=(1, 2, 3), more=[Injury(what)])
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("kind", "what", "message"),
    [
        ("ddp", "no sync", r"step 1: the gradients of the 2 devices differ, most of all .* They must be averaged"),
        (
            "ddp",
            "weights",
            r"step 1: the weights of the 2 devices differ, .*sync_tolerance=1e-05.*must start equal",
        ),
        pytest.param(
            "fsdp",
            "start",
            r"the devices start with different weights, most of all in .*: take the same seed",
            marks=NEEDS_FSDP,
        ),
    ],
)
def test_devices_that_differ_are_stopped(kind, what, message, tmp_path):
    for told in together(2, injured, str(tmp_path), kind, what):
        assert isinstance(told, str), "nobody noticed"
        assert re.search(message, told), told


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=NEEDS_FSDP)])
def test_all_devices_skip_the_step_that_one_spoils(kind, tmp_path):
    for run in together(2, injured, str(tmp_path), kind, "nan"):
        assert math.isnan(run.losses[1])
        assert apart(run.weights[1], run.weights[2]) == 0
        assert apart(run.weights[2], run.weights[3]) > 0


def test_weights_past_help_end_all_devices(tmp_path):
    """When it is refused to save them, within a window of the log by time: no device waits for sums of the others."""
    for told in together(2, injured, str(tmp_path), "ddp", "overflow", "log_every_steps=10"):
        assert re.match(r"step 3: the weights are not finite and are not saved", told), told


@NEEDS_FSDP
def test_weights_are_on_their_device_before_devices_compare_them(monkeypatch):
    """NCCL, unlike gloo, has no way to send what lies on the CPU."""
    strategy, done = FullySharded(None), []
    strategy.accelerator = SimpleNamespace(setup=lambda trainer: None)
    monkeypatch.setattr(FullySharded, "lightning_module", SimpleNamespace(network=None))
    monkeypatch.setattr(strategy, "model_to_device", lambda: done.append("moved"))

    def compare(network):
        raise UserError("compared")

    monkeypatch.setattr(strategies, "refuse_different_starts", compare)
    with pytest.raises(UserError, match="compared"):
        strategy.setup(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    assert done == ["moved"]


SHAPES = [(5, 3), (3, 5), (8, 8), (5, 3), (1, 4), (5, 3), (2, 9)]  # rows that two ranks cannot share evenly, or at all


def matrices():
    return [torch.randn(shape, generator=rng.generator("matrix", i)) for i, shape in enumerate(SHAPES)]


class Matrices(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(m) for m in matrices())
        self.vector = nn.Parameter(torch.linspace(-1, 1, 3))


def steps_of_muon(kind, distribute=True):
    """Two steps with gradients that are a function of the step; return the weights and the momenta."""
    if kind != "alone" and not dist.is_initialized():
        dist.init_process_group("gloo")
    network = Matrices()
    if kind == "sharded":
        fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    groups = [{"params": list(network.weights), "kind": "muon"}, {"params": [network.vector], "kind": "adam"}]
    optimizer = MuonAdam(groups, lr=0.1, weight_decay=0.1, distribute=distribute)
    for step in range(2):
        for i, weight in enumerate(network.parameters()):
            gradient = torch.randn(weight.shape, generator=rng.generator("gradient", step, i))
            weight.grad = _like(gradient, weight)
        optimizer.step()
    return [full_tensor(p.detach()) for p in network.parameters()], [
        full_tensor(s["momentum"]) for s in optimizer.state.values()
    ]


def _like(full, weight):
    from pmf_lightning.distributed.dtensor import spread_like

    return spread_like(full, weight)


@pytest.mark.parametrize("arguments", [("replicated",), ("replicated", False), ("sharded",)], ids=str)
def test_orthogonalising_together_is_orthogonalising_alone(arguments):
    alone = steps_of_muon("alone")
    (first, second) = together(2, steps_of_muon, *arguments)
    for a, b, c in zip(alone[0] + alone[1], first[0] + first[1], second[0] + second[1], strict=True):
        assert torch.equal(b, c)
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_work_is_dealt_evenly_and_once():
    shapes = [(64, 64)] * 20 + [(171, 64)] * 10 + [(8, 64)] * 3
    shares = assign(shapes, 4)
    assert sorted(i for share in shares for i in share) == list(range(len(shapes)))
    flops = [sum(min(shapes[i]) ** 2 * (2 * max(shapes[i]) + min(shapes[i])) for i in share) for share in shares]
    assert max(flops) < 1.1 * min(flops)


def test_turns_hold_so_much_and_miss_nothing():
    shapes = [(4, 4), (4, 4), (10, 10), (2, 2), (3, 3)]
    found = list(chunks(shapes, 32))
    assert [shapes[part] for part in found] == [[(4, 4), (4, 4)], [(10, 10)], [(2, 2), (3, 3)]]


def test_duals_pass_through_hooks_that_change_tensors():
    """A hook in front doubles, as if it replaced tensors; one behind notes that it saw a tensor with a graph."""
    layer, seen = nn.Linear(3, 2).double(), []
    nn.init.normal_(layer.weight, generator=rng.generator("weight"))
    nn.init.normal_(layer.bias, generator=rng.generator("bias"))
    layer.register_forward_pre_hook(lambda _, args: tuple(x.view_as(x) for x in args))
    layer.register_forward_hook(lambda _, args, out: seen.append(out.requires_grad and type(out) is torch.Tensor))
    open_duals(layer)
    x, dx = (torch.randn(4, 3, generator=rng.generator(name), dtype=torch.float64) for name in ("x", "dx"))
    (out,), slope = derivative(lambda x: (layer(x).tanh(),), (x,), (dx,))
    _, wanted = torch.func.jvp(lambda x: (x @ layer.weight.mT + layer.bias).tanh(), (x,), (dx,))
    assert seen == [True]
    assert torch.allclose(slope, wanted, rtol=1e-12)
    assert out.requires_grad
    assert not slope.requires_grad


@pytest.mark.parametrize(
    ("version", "fine"), [("2.11.0", False), ("2.12.1+cu130", False), ("2.13.0", True), ("3.0.0a0+git", True)]
)
def test_old_torch_is_refused_with_the_reason(version, fine):
    if fine:
        refuse_old_torch(version)
        return
    with pytest.raises(UserError, match=r"trainer=fsdp: torch 2\.1\d.* cannot take forward-mode .* 2\.13 or newer"):
        refuse_old_torch(version)


@pytest.mark.parametrize(("devices", "size"), [("auto", 8), ("-1", 8), ("[0,3]", 4), ("2", 4)])
def test_how_many_devices_train_together(devices, size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cfg = compose(["trainer=ddp", f"trainer.devices={devices}", "trainer.num_nodes=2"])
    assert validate.world_size(cfg.trainer) == size
    cfg.trainer.accelerator = "cpu"
    assert validate.world_size(cfg.trainer) == (2 if devices in ("auto", "-1") else size)  # Lightning takes one


def options_of(*overrides):
    return trainer_options(training_settings(compose(list(overrides))).trainer)


@NEEDS_FSDP
def test_trainers_build_their_strategies():
    options = {kind: options_of(f"trainer={kind}") for kind in ("cpu", "ddp", "fsdp")}
    assert options["cpu"]["strategy"] == "auto"
    assert options["ddp"]["strategy"]._ddp_kwargs["gradient_as_bucket_view"] is True
    assert isinstance(options["fsdp"]["strategy"], FullySharded)
    with pytest.raises(UserError, match="gather_dtype=int8: use bfloat16"):
        fsdp("int8")


def test_slurm_is_told_how_many_tasks_there_are():
    """Composed as Hydra does it; the launcher itself is not needed to compose."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        overrides = ["launcher=slurm", "trainer=fsdp", "trainer.num_nodes=16", "hydra.launcher.partition=big"]
        cfg = hydra_compose("train", overrides, return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (16, 8, 8)
    assert (cfg.trainer.devices, cfg.ckpt, launcher.partition) == (8, "auto", "big")
    assert cfg.trainer.strategy._target_.endswith("fsdp")


@pytest.mark.parametrize(("flags", "message"), [([], "add -m"), (["-m"], r"pip install 'pmf_lightning\[slurm\]'")])
def test_a_cluster_out_of_reach_is_one_line(flags, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)  # as if not installed
    monkeypatch.setattr(sys, "argv", ["train", *flags, "launcher=slurm"])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    assert re.search(f"^error: launcher=slurm: .*{message}\n$", capsys.readouterr().err)


def test_a_task_of_slurm_finds_its_directory_by_the_number_of_the_job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert compose(["launcher=slurm"]).run_dir == "runs/pmf_digits-digits/slurm-71-0"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert compose(["launcher=slurm"]).run_dir == "runs/pmf_digits-digits/slurm-70-3"


@pytest.mark.parametrize(
    "words",
    [{"TORCHELASTIC_RUN_ID": "x"}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}],
)
def test_processes_that_start_by_themselves_need_a_directory(monkeypatch, words):
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="run_dir=null: under torchrun and srun every process would choose its own"):
        run_dir.choose(run_request(compose([])))


def test_a_second_run_of_a_process_goes_to_its_own_directory(tmp_path, monkeypatch):
    """As with torchrun ... -m seed=0,1: no process may look for the checkpoints of the second run in the first one."""
    monkeypatch.setenv("PMF_LIGHTNING_RUN_DIR", str(tmp_path / "before"))
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        for name in ("first", "second"):
            assert run_dir.choose(run_request(compose([f"run_dir={tmp_path}/{name}", "ckpt=auto"]))) == tmp_path / name
