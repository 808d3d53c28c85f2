"""What a model costs: the papers' numbers, counted blocks, counted bytes, and the command that prints them."""

import io
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from common import objective, tiny_network
from rich.console import Console
from shrunk import BACKBONE
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile

from pmf_lightning import Batch, JiT, QueueBatch, UserError, build, compose
from pmf_lightning.config.compose import choices
from pmf_lightning.config.presets import Published, published
from pmf_lightning.encoders.battery.timm_member import TimmMember
from pmf_lightning.encoders.drifting.extractor import DriftFeatures
from pmf_lightning.info import info
from pmf_lightning.info import main as info_main
from pmf_lightning.models.layers import Block
from pmf_lightning.objectives.jvp.forward_mode import Dual
from pmf_lightning.objectives.jvp.forward_rules import RULES
from pmf_lightning.pipeline.parts import make_source
from pmf_lightning.profiling import block_forwards
from pmf_lightning.profiling.block_forwards import BlockForwards
from pmf_lightning.profiling.live_bytes import MemoryTracker, peak_bytes
from pmf_lightning.profiling.model_cost import NotCountedError
from pmf_lightning.profiling.model_facts import find_facts
from pmf_lightning.profiling.step_memory import step_memory
from pmf_lightning.profiling.tables import all_models, number, one_model, percent
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.rng import BatchRows

# Fact by fact: data, parameters to sample and to train, millions as printed, 10^9 multiply-adds, FID, inception score
PAPERS = {
    "pmf_b4": ("imagenet64", 117_588_400, 174_274_784, None, None, 3.80, None),
    "pmf_b16": ("imagenet256", 118_234_240, 175_474_304, 118, 33, 3.12, 254.6),
    "pmf_b32": ("imagenet512", 120_300_928, 179_312_768, 120, 34, 3.70, 271.9),
    "pmf_b64": ("imagenet1024", 128_567_680, 194_666_624, None, None, 4.58, None),
    "pmf_l16": ("imagenet256", 410_320_768, 511_789_696, 410, 117, 2.52, 262.6),
    "pmf_l32": ("imagenet512", 412_977_280, 516_807_808, 413, 117, 2.75, 276.8),
    "pmf_h16": ("imagenet256", 955_508_992, 1_113_904_640, 956, 271, 2.22, 268.8),
    "pmf_h32": ("imagenet512", 959_050_240, 1_120_397_312, 959, 272, 2.48, 284.9),
    "imf_b2": ("imagenet256_latents", 88_935_184, 145_596_960, 89, 24.9, 3.39, 255.3),
    "imf_m2": ("imagenet256_latents", 173_908_240, 230_570_016, 174, None, 2.27, 257.7),
    "imf_l2": ("imagenet256_latents", 409_054_224, 509_752_352, 409, 116.4, 1.86, 276.6),
    "imf_xl2": ("imagenet256_latents", 610_415_632, 711_113_760, 610, 174.6, 1.72, 282.0),
    "jit_b16": ("imagenet256", 131_123_712, 131_123_712, 131, 25, 3.66, 275.1),
    "jit_b32": ("imagenet512", 133_190_400, 133_190_400, 133, 26, 4.02, 271.0),
    "jit_b64": ("imagenet1024", 141_457_152, 141_457_152, 141, 30, 4.82, None),
    "jit_l16": ("imagenet256", 458_877_664, 458_877_664, 459, 88, 2.36, 298.5),
    "jit_l32": ("imagenet512", 461_534_176, 461_534_176, 462, 89, 2.53, 299.9),
    "jit_h16": ("imagenet256", 952_514_368, 952_514_368, 953, 182, 1.86, 303.4),
    "jit_h32": ("imagenet512", 956_055_616, 956_055_616, 956, 183, 1.94, 309.1),
    "jit_g16": ("imagenet256", 2_007_130_000, 2_007_130_000, 2000, 383, 1.82, 292.6),
    "jit_g32": ("imagenet512", 2_011_555_984, 2_011_555_984, 2000, 384, 1.78, 306.8),
    "drifting_b16": ("imagenet256", 133_864_704, 133_864_704, 134, None, 1.76, 299.7),
    "drifting_l16": ("imagenet256", 464_450_304, 464_450_304, 464, 87, 1.61, 307.5),
    "drifting_b2": ("imagenet256_latents_scaled", 132_708_880, 132_708_880, 133, None, 1.75, 263.2),
    "drifting_l2": ("imagenet256_latents_scaled", 462_909_456, 462_909_456, 463, None, 1.54, 258.9),
}
SOURCES = {"pmf": "2601.22158", "imf": "2512.02012", "jit": "2511.13720", "dri": "2602.04770"}
BLOCK = 7_081_088  # parameters of a block of size B
RELEASED = {"imf_b2": 88_948_256, "imf_m2": 173_921_312, "imf_l2": 409_071_648, "imf_xl2": 610_433_056}
SOME = ["imf_xl2", "pmf_h16", "pmf_tiny"]
TINY = ["model=pmf_tiny", "data=digits", "batch=16"]
OWN = [  # of drifting's own network
    *("backbone.patch=8", "backbone.context=3", "backbone.width=32", "backbone.num_heads=2"),
    *("backbone.mlp_dim=48", "backbone.depth=2"),
]


@pytest.fixture
def call(call_command):
    """Call the command in an empty folder; return (exit status, stdout, stderr)."""
    return partial(call_command, info_main)


@pytest.fixture(scope="module")
def presets():
    """The facts of some presets with a backbone of almost nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pmf_lightning.commands.info.choices", lambda group: SOME)
        return {facts.model: facts for facts in info(["every_model=true", "batch=2", *BACKBONE])}


# Published numbers


def test_frozen_encoders_of_post_training_are_counted():
    cfg = compose(["posttrain=fd_loss", "posttrain.encoders=[classifier0,mae,pixels8]"])
    facts = find_facts(cfg)
    network = instantiate(cfg.battery.members.classifier0.settings).network(1, 10)
    assert facts.encoders["classifier0"] == sum(weight.numel() for weight in network.parameters())
    assert facts.encoders["pixels8"] == 0
    memory = facts.memory
    assert memory.encoders == 4 * sum(facts.encoders.values())
    assert memory.fixed == memory.weights + memory.gradients + memory.optimizer + memory.averages + memory.encoders
    shown = Console(width=120, record=True, file=io.StringIO())
    shown.print(one_model(facts))
    assert f"frozen encoder mae, {facts.encoders['mae']:,} weights" in shown.export_text()
    assert TimmMember.count({"model": "resnet18.a1_in1k"}, make_source(cfg)) == 11_176_512


def test_published_numbers_are_the_papers():
    for model, row in PAPERS.items():
        paper = published()[model]
        numbers = (paper.parameters, paper.training_parameters, paper.paper_parameters_m, paper.gmacs)
        assert (paper.data, *numbers, paper.fid, paper.inception_score) == row, model
        assert SOURCES[model[:3]] in paper.source
        assert paper.evaluations == (198 if model.startswith("jit") else 1)
        assert paper.released_parameters == RELEASED.get(model)


def test_every_preset_names_its_data():
    assert {paper.data for paper in published().values()} <= set(choices("data"))
    for model in published().keys() - PAPERS.keys():
        assert published()[model] == Published(published()[model].data)


def test_the_paper_is_no_part_of_a_run():
    cfg = compose(["model=pmf_b4", "data=imagenet64"])
    assert cfg.paper.data == "imagenet64"
    assert "paper" not in build(cfg, empty=True).config
    for override in ("paper.fid=1", "+paper.seen=1", "~paper"):
        with pytest.raises(UserError, match=r"results of the paper are not options"):
            compose(["model=pmf_b4", override])


@pytest.mark.parametrize("model", RELEASED)
def test_released_file_keeps_the_last_layer_of_the_v_head(model):
    network = build(compose([f"model={model}", "data=imagenet256_latents"]), empty=True).network
    head = network.heads["v"]
    last = sum(weight.numel() for part in (head.norm, head.out) for weight in part.parameters())
    sampling = sum(w.numel() for w in network.parameters()) - sum(w.numel() for w in head.parameters())
    assert sampling == published()[model].parameters
    assert sampling + last == published()[model].released_parameters
    assert sum(weight.numel() for weight in network.parameters()) == published()[model].training_parameters


# Spaces


@pytest.mark.parametrize(
    ("overrides", "conversion", "target", "velocity"),
    [
        ([], "x -> u = (z - x) / clip(t, 0.05, 1) -> V", "(z - x) / clip(t, 0.05, 1)", "head"),
        (["objective.prediction=u", "objective.v_target=plain"], "u -> V", "e - x", "head"),
        (
            ["preconditioner=edm", "objective.t_clip=0.1", "objective.v_source=boundary"],
            "F -> x = c_skip(t) z + c_out(t) F (EDM) -> u = (z - x) / clip(t, 0.1, 1) -> V",
            "(z - x) / clip(t, 0.1, 1)",
            "v = u(z, t, t)",
        ),
    ],
)
def test_spaces_in_letters(overrides, conversion, target, velocity):
    told = build(compose([*TINY, "perceptual=none", *overrides]), empty=True).objective.describe()
    assert (told.conversion, told.target) == (conversion, target)
    assert told.compared == f"the guided velocity of v_t = {target}"
    assert velocity in told.velocity


@pytest.mark.parametrize(
    ("given", "wanted", "conversion", "target"),
    [
        ("x", "v", "x -> v = (z - x) / clip(t, 0.1, 1)", "x = x -> v = (z - x) / clip(t, 0.1, 1)"),
        (
            "eps",
            "x",
            "eps -> x = (z - t eps) / clip(1 - t, 0.1, 1)",
            "eps = e -> x = (z - t eps) / clip(1 - t, 0.1, 1)",
        ),
        ("v", "v", "v", "v = e - x"),
    ],
)
def test_spaces_of_jit_in_letters(given, wanted, conversion, target):
    told = JiT(given, wanted, noise_scale=1, P_mean=0.8, P_std=0.8, label_dropout=0.1, t_clip=0.1).describe()
    assert (told.conversion, told.target) == (conversion, target)
    assert told.compared.startswith(f"{wanted} of the data")
    assert "label dropout only" in told.velocity


@pytest.mark.slow
def test_models_whose_costs_are_not_counted_are_left_out_of_all(presets, monkeypatch, capsys):
    def find(cfg):
        return find_facts(compose(["model=mae_tiny"])) if cfg.name == "pmf_b4" else presets[cfg.name]

    monkeypatch.setattr("pmf_lightning.commands.info.find_facts", find)
    monkeypatch.setattr("pmf_lightning.commands.info.choices", lambda group: ["pmf_tiny", "pmf_b4"])
    assert info(["every_model=true"]) == [presets["pmf_tiny"]]
    assert (
        "left out: model=pmf_b4 (mae_tiny: costs are counted only for transformers that generate images"
        in capsys.readouterr().err
    )
    with pytest.raises(NotCountedError):
        info(["model=pmf_b4"])


# Block-forwards


class BlockCount:
    """Counts, image by image, what the blocks of a real network and the tape of forward mode do."""

    def __init__(self, network, monkeypatch):
        self.guidance = self.values = self.tangent = self.backward = 0
        for block in network.modules():
            if isinstance(block, Block):
                block.register_forward_hook(self.loss_note)
        rule = RULES["silu"]

        def counting(func, out, values, slopes, kwargs):
            if out.ndim == 3:  # the one of a block; embedders have two axes
                self.tangent += len(out)
            return rule(func, out, values, slopes, kwargs)

        monkeypatch.setitem(RULES, "silu", counting)

    def loss_note(self, block, args, output):
        rows = len(output)
        if torch.is_grad_enabled():
            self.values += rows
            (output.value if isinstance(output, Dual) else output).register_hook(self.note_backward)
        elif forward_ad.unpack_dual(output).tangent is not None:
            self.tangent += 2 * rows
        else:
            self.guidance += rows

    def note_backward(self, gradient):
        self.backward += 2 * len(gradient)


@pytest.mark.parametrize("velocity", ["head", "boundary"])
@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_block_forwards_are_those_of_a_real_step(form, velocity, monkeypatch):
    images = 48
    network = tiny_network(torch.float32, depth=2, heads={"u": 3, "v": 1})
    chosen = objective(jvp=form, v_source=velocity)
    counted = block_forwards.count(network, chosen, seed=7, images=images)
    real = BlockCount(network, monkeypatch)
    batch = Batch(torch.zeros(images, 3, 8, 8), torch.zeros(images, dtype=torch.long))
    chosen(network, batch, chosen.draw(batch, 7, 0)).total.backward()
    assert counted.guidance * images == real.guidance
    assert counted.values * images == real.values
    assert counted.tangent * images == real.tangent
    assert counted.backward * images == real.backward
    assert counted.total == pytest.approx(counted.guidance + counted.values + counted.tangent + counted.backward)
    assert 0 < counted.guidance < 2 * (2 + (1 if velocity == "head" else 3))


def test_block_forwards_of_the_paper_and_the_official_code():
    """The fact sheet: 136 in the reference, 104 (one pass) to 112 (two) where every row is guided."""
    module = build(compose(["model=pmf_b16", "data=imagenet256"]), empty=True)
    official = block_forwards.of_passes(module.network, module.objective.describe().official)
    assert (official.total, official.guidance, official.tangent, official.backward) == (136, 48, 16, 48)
    ours = block_forwards.count(module.network, module.objective, images=1024)
    assert (ours.values, ours.tangent, ours.backward) == (24, 8, 48)
    assert 16 * 0.9 < ours.guidance < 24
    assert 94 < ours.total < 104
    again = block_forwards.count(module.network, replace(module.objective, jvp="two_pass"), images=1024)
    assert again == replace(ours, tangent=16.0)


@pytest.mark.parametrize("backbone", ["jit", "vit"])
def test_jit_needs_neither_guidance_nor_tangent(backbone):
    module = build(compose(["model=jit_b16", f"backbone={backbone}", "data=imagenet256"]), empty=True)
    blocks = len(module.network.trunk) + len(module.network.heads["u"].blocks)
    assert block_forwards.count(module.network, module.objective, images=8) == BlockForwards(0, blocks, 0, 2 * blocks)


@pytest.mark.parametrize("backbone", ["drifting", "vit"])
def test_drifting_is_counted_by_the_images_that_it_makes(backbone):
    module = build(compose(["model=drifting_b16", f"backbone={backbone}", "data=imagenet256"]), empty=True)
    blocks = len(module.network.trunk) + len(module.network.heads["u"].blocks)
    for images in (1, 200):  # one label of 64 images, and three
        counted = block_forwards.count(module.network, module.objective, images=images)
        assert counted == BlockForwards(0, blocks, 0, 2 * blocks)


def test_only_flow_matching_rows_need_no_tangent():
    chosen = objective(flow_matching_fraction=1.0)
    counted = block_forwards.count(tiny_network(), chosen, images=64)
    assert counted.tangent == 0
    assert counted.guidance < 2  # v_u alone, of rows with a label


# Memory


def test_live_bytes_by_hand():
    def work(device):
        a = torch.empty(100, 100, device=device)  # 40,000 bytes
        b = a + 1
        del a
        c = b.view(-1)[3:]  # no memory of its own, but keeps b's
        del b
        d = c * 2
        del c
        return d + 1

    assert peak_bytes(lambda: work("meta")) == 80_000
    assert peak_bytes(lambda: work("cpu")) == 80_000
    known = torch.empty(1000)
    with MemoryTracker() as live:
        known.add_(1)
        view = known[1:]
        assert live.now == live.peak == 0
        kept = view + 1
        assert live.now == 4 * 999
        del kept
        assert live.now == 0
    assert live.peak == 4 * 999


def real_peak(work):
    """The peak of what torch's own CPU allocator hands out while ``work`` runs."""
    work()  # what is made once is there already
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    "overrides",
    [
        ["backbone.attention=fused"],
        ["backbone.attention=plain", "objective.jvp=two_pass", "optimizer=adam"],
    ],
    ids="-".join,
)
def test_memory_of_a_step_is_that_of_a_real_one(overrides):
    cfg = compose(["model=pmf_tiny", "perceptual=none", *BACKBONE, *overrides])
    size, shard = 16, BatchRows(1, 2)
    empty = build(cfg, empty=True)
    estimate = step_memory(
        empty.network,
        empty.objective,
        lambda: empty.configure_optimizers()["optimizer"],
        averages=2,
        micro_batch=size,
        shard=shard,
    )
    module = build(cfg)
    weights = list(module.network.parameters())
    batch = Batch(torch.zeros(size, 1, 32, 32), torch.zeros(size, dtype=torch.long))
    draws = module.objective.draw(batch, 0, 0, shard)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = module.configure_optimizers()["optimizer"]
    real = real_peak(lambda: module.objective(module.network, batch, draws).total.backward())
    assert abs(estimate.activations / real - 1) < 0.02
    assert abs(estimate.update / real_peak(optimizer.step) - 1) < 0.05
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert estimate.optimizer == sum(value.numel() * 4 for value in moments)
    assert estimate.weights == estimate.gradients == estimate.averages / 2 == 4 * sum(w.numel() for w in weights)
    assert estimate.peak == estimate.fixed + max(estimate.activations, estimate.update)
    assert estimate.per_image * size == pytest.approx(estimate.activations)


@pytest.mark.parametrize(
    "network", [["model=drifting_tiny", *BACKBONE], ["model=drifting_b16", *OWN]], ids=["vit", "own"]
)
def test_memory_of_a_drifting_step_is_that_of_a_real_one(network):
    """With the pixels as the one feature; the second of two devices makes half of the images."""
    queues = ["queues.positives=6", "queues.negatives=3", "objective.samples_per_label=4"]
    cfg = compose([*network, "data=digits", "drift_features=raw", *queues])
    shard, size, known = BatchRows(1, 2), 16, torch.autocast
    empty = build(cfg, empty=True)
    options = {"averages": 1, "micro_batch": size, "shard": shard, "real_counts": (6, 3)}
    estimate = step_memory(empty.network, empty.objective, lambda: empty.configure_optimizers()["optimizer"], **options)
    assert torch.autocast is known
    module = build(cfg)
    batch = QueueBatch(torch.zeros(4, 6, 1, 32, 32), torch.arange(4), torch.zeros(4, 3, 1, 32, 32))
    draws, features = module.objective.draw(batch, 0, 0, shard), DriftFeatures()
    for weight in module.network.parameters():
        weight.grad = torch.zeros_like(weight)
    real = real_peak(lambda: module.objective(module.network, batch, draws, features).total.backward())
    assert abs(estimate.activations / real - 1) < 0.01
    fewer = step_memory(
        empty.network,
        empty.objective,
        lambda: empty.configure_optimizers()["optimizer"],
        **{**options, "real_counts": (1, 0)},
    )
    assert fewer.activations < 0.99 * estimate.activations


def test_memory_of_large_blocks():
    """Activations grow with the micro-batch, weights do not; the moments of Muon are one copy of its matrices."""
    shallow = ["backbone.depth=1", "backbone.heads={u: 1, v: 1}"]
    memory = info(["model=pmf_b16", "micro_batch=32", *shallow])[0].memory
    assert memory.micro_batch == 32
    assert memory.weights == memory.gradients == 4 * (175_474_304 - 21 * BLOCK)
    assert memory.averages == 3 * memory.weights
    assert memory.weights < memory.optimizer < 1.1 * memory.weights
    kept = 276 * 4 * (10 * 768 + 4 * 2048)  # q, k, v and so on of a block, the least that a backward pass needs
    assert 3 * kept < memory.per_image < 6 * kept


@pytest.mark.slow
def test_micro_batch_follows_the_run():
    def memory(*overrides):
        return find_facts(compose([*TINY, *BACKBONE, *overrides])).memory

    whole, part = memory(), memory("micro_batch=4")
    assert (whole.micro_batch, part.micro_batch) == (16, 4)
    assert whole.fixed == part.fixed
    assert 3 < whole.activations / part.activations < 4.5


# Facts


@pytest.mark.slow
def test_facts_beside_the_paper(presets):
    sizes = {"parameters": 118_234_240, "training_parameters": 175_474_304, "multiply_adds": 33_330_000_000}
    facts = replace(presets["pmf_h16"], paper=published()["pmf_b16"], **sizes)
    assert (facts.model, facts.data, facts.image) == ("pmf_h16", "imagenet256", (3, 256, 256))
    assert (facts.condition_tokens, facts.patch_tokens, facts.patch_dimension) == (20, 256, 768)
    assert (facts.width, facts.bottleneck, facts.blocks) == (32, 8, {"trunk": 1, "u": 1, "v": 1})
    apart = facts.differences()
    assert apart["parameters"] == apart["training_parameters"] == 0
    assert apart["multiply_adds"] == pytest.approx(1.0)
    assert apart["block_forwards"] == pytest.approx(100 * (facts.block_forwards.total / facts.official.total - 1))


@pytest.mark.slow
def test_changes_show_as_differences(presets):
    facts = presets["pmf_h16"]
    assert facts.differences()["parameters"] == pytest.approx(100 * (facts.parameters / 955_508_992 - 1))
    assert facts.differences()["parameters"] < -99
    assert presets["pmf_tiny"].differences().keys() == {"block_forwards"}


@pytest.mark.slow
def test_presets_stand_on_their_own_data(presets):
    assert list(presets) == SOME
    for model, facts in presets.items():
        assert facts.data == published()[model].data
    assert presets["imf_xl2"].image == (4, 32, 32)
    assert presets["imf_xl2"].prediction == "u -> V"
    assert presets["imf_xl2"].official.total == 3 * 2 + 3 + 2 + 2 * 3
    assert presets["pmf_h16"].patch_dimension == 768


@pytest.mark.parametrize(
    ("overrides", "data", "classes"),
    [
        (["model=pmf_b4"], "imagenet64", 1000),
        (["model=pmf_b4", "data=digits"], "digits", 10),
        (["model=imf_b2", "data.classes=7"], "imagenet256_latents", 7),
        ([], "digits", 10),
    ],
)
def test_data_can_be_chosen(overrides, data, classes, monkeypatch):
    def name_data(cfg):
        raise UserError(f"{cfg.data.classes} classes of {cfg.data.name}")

    monkeypatch.setattr("pmf_lightning.commands.info.find_facts", name_data)  # composition alone
    with pytest.raises(UserError, match=f"^{classes} classes of {data}$"):
        info(overrides)


@pytest.mark.parametrize("pixels", ["imf_b16", "imf_l16"])
def test_pixel_presets_of_imf_differ_from_the_latent_ones_by_their_patches(pixels):
    """768 instead of 16 numbers in a patch, into the width and out of it, once for each head."""
    latent = published()[pixels.replace("16", "2")]
    network = build(compose([f"model={pixels}", "data=imagenet256"]), empty=True).network
    width, more = network.heads["u"].out.in_features, 768 - 16
    once = more * width + more * (width + 1)
    assert sum(w.numel() for w in network.parameters()) == latent.training_parameters + once + more * (width + 1)


def test_facts_of_jit(call):
    sizes = ["backbone.width=32", "backbone.num_heads=2", "backbone.mlp_dim=48", "backbone.depth=4"]
    sizes += ["backbone.context_start=1", "backbone.bottleneck=8"]
    status, output, errors = call("model=jit_h16", "batch=2", *sizes)
    assert (status, errors) == (0, "")
    for text in ("288 = 32 of conditions + 16 x 16", "x -> v = (z - x)", "198 evaluations each", "label dropout only"):
        assert text in output, text
    assert max(map(len, output.splitlines())) <= 100


def test_facts_of_drifting(call):
    status, output, errors = call("model=drifting_b16", "batch=128", *OWN[1:])
    assert (status, errors) == (0, "")
    for text in (
        "259 = 3 of conditions + 16 x 16",
        "x + V, where the",
        "alpha, a condition",
        "2602.04770",
        "micro_batch=128",
    ):
        assert text in output, text
    assert max(map(len, output.splitlines())) <= 100


def test_micro_batches_of_drifting_are_refused_as_in_training():
    with pytest.raises(UserError, match="micro_batch=64: the loss of drifting_b16 has means over the complete batch"):
        info(["model=drifting_b16", "micro_batch=64", *OWN])


# The command


@pytest.mark.slow
def test_table_of_one_model(call):
    status, output, errors = call("model=pmf_tiny", "batch=8", *BACKBONE)
    assert (status, errors) == (0, "")
    network = build(compose([*TINY, *BACKBONE]), empty=True).network
    to_train = f"{sum(weight.numel() for weight in network.parameters()):,}"
    tokens = "36 = 20 of conditions + 4 x 4 patches"
    for text in ("pmf_tiny on digits", tokens, "x -> u = (z - x) / clip(t, 0.05, 1)", to_train, "micro_batch=8"):
        assert text in output, text
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.slow
def test_table_of_all_models(presets):
    wide = {"parameters": 955_508_992, "training_parameters": 1_113_904_640, "multiply_adds": 270_400_000_000}
    models = [replace(presets["pmf_h16"], model=name, data=published()[name].data, **wide) for name in choices("model")]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(all_models(models))
    output = console.export_text()
    for model in choices("model"):
        assert f"\n{model} " in output
    assert "…" not in output  # nothing is cut off
    assert output.count("the same") == 2 * len(models)
    assert output.count("271 -0.2%") == len(models)
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.slow
def test_model_all_is_every_preset(call, monkeypatch):
    some = ["pmf_h16", "pmf_tiny"]
    monkeypatch.setattr("pmf_lightning.commands.info.choices", lambda group: some if group == "model" else ["?"])
    status, output, _ = call("model=all", "batch=2", "format=json", *BACKBONE)
    models = json.loads(output)
    assert status == 0
    assert [entry["model"] for entry in models] == some
    assert models[0]["paper"]["parameters"] == 955_508_992
    assert models[0]["difference_percent"]["parameters"] < -99
    tiny = models[1]
    assert (tiny["data"], tiny["memory"]["micro_batch"]) == ("digits", 2)
    assert tiny["block_forwards"]["total"] == pytest.approx(sum(list(tiny["block_forwards"].values())[:-1]))
    assert tiny["memory"]["peak"] >= tiny["memory"]["fixed"] + tiny["memory"]["activations"]
    status, output, _ = call("model=pmf_tiny", "batch=2", "format=json", *BACKBONE)
    assert (status, json.loads(output)) == (0, tiny)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("format=xml", "format=xml: there is no such format; known: json, table"),
        ("model=pmf_b17", "model=pmf_b17: there is no such model; did you mean"),
    ],
)
def test_bad_input_is_one_line(call, argument, message):
    status, output, errors = call(argument)
    assert (status, output) == (2, "")
    assert message in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=pmf_b16", "every_model=true"], "every_model=true model=pmf_b16: choose one of the two"),
        (["model=pmf_b16", "backbone.patch=17"], r"data\.resolution=256 is not divisible by backbone\.patch=17"),
        (["every_model=true", "data=digits", "data.resolution=20"], r"^model=drifting_b16: data\.resolution=20 is not"),
        (["model=pmf_tiny", "batch=10", "micro_batch=4"], "micro_batch=4 does not divide the 10 images"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        info(overrides)


def test_help_names_choices_and_examples(call):
    status, output, _ = call("--help")
    assert status == 0
    for text in ("python -m pmf_lightning.info model=all", "format=json", "imf_xl2", "imagenet256_latents"):
        assert text in output


@pytest.mark.parametrize(
    ("value", "text"), [(118_234_240, "118,234,240"), (33.3312, "33.33"), (0.010981, "0.01098"), (98.25, "98.25")]
)
def test_numbers_as_text(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0%"), (1.04, "+1.0%"), (-27.76, "-27.8%"), (0.041, "+0.04%"), (2e-5, "+2e-05%")],
)
def test_differences_as_text(value, text):
    assert percent(value) == text


@pytest.mark.slow
def test_largest_micro_batch_fits_and_the_next_does_not():
    facts = find_facts(compose(["model=pmf_tiny", "data=digits", "batch=8", "gpu_gb=0.05"], "info"))
    memory, images = facts.memory, facts.largest_micro_batch
    assert images > 8
    assert memory.fixed + images * memory.per_image <= 0.05e9 < memory.fixed + (images + 1) * memory.per_image
    assert facts.as_json()["memory"]["largest_micro_batch"] == images
    assert memory.largest_micro_batch(memory.fixed) == 0
