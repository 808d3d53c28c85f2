"""The masked autoencoder: network, objective, draws, and the one that is trained on the data at hand and kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import normal, relative, uniform
from torch.nn import functional as F

from pmf_lightning import Batch, UserError, compose, ema_beta
from pmf_lightning.config import validate
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.data.transforms import to_float
from pmf_lightning.encoders.drifting import train_mae
from pmf_lightning.encoders.drifting.train_mae import MAESettings, cached_mae
from pmf_lightning.models.layers import Linear
from pmf_lightning.models.mae import MAE, MAEEncoder, patchify, unpatchify
from pmf_lightning.models.mae.layers import GroupNorm, conv, lecun_
from pmf_lightning.models.mae.network import UNetDecoder
from pmf_lightning.models.vit import init_weights
from pmf_lightning.objectives.crops import CropLaw
from pmf_lightning.objectives.masked_autoencoder import MaskedAutoencoder, augmented
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.utils import rng
from pmf_lightning.utils.hydra_compat import instantiate

SIZES = {"resolution": 16, "channels": 3, "patch": 2, "base_channels": 32, "blocks": (1, 2, 1, 1), "classes": 7}
NUMBERS = {"patch": 2, "cell": 2, "mask_fraction": 0.5, "class_weight": 0.1, "class_steps": 3000, "class_warmup": 1000}
CROP = CropLaw(area=(0.2, 1.0), ratio=(0.75, 4 / 3))


def mae(dtype=torch.float64, **changes) -> MAE:
    """A network of random weights, none of them zero."""
    network = MAE(**{**SIZES, **changes})
    init_weights(network, lambda name: rng.generator("tests", name))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * normal(name, shape=tuple(weight.shape), dtype=torch.float32))
    return network.to(dtype)


def objective(**changes) -> MaskedAutoencoder:
    return MaskedAutoencoder(**{**NUMBERS, "steps": 200_000, "crop": None, "flip": False, **changes})


def batch(n=4, channels=3, side=16, classes=7, dtype=torch.float64) -> Batch:
    x = uniform("x", count=n * channels * side**2, low=-1.0, dtype=dtype).view(n, channels, side, side)
    return Batch(x, torch.arange(n) % classes)


class Answers:
    """A stand-in network with fixed answers, which remembers what it saw."""

    classes = 7

    def __init__(self, image, logits):
        self.answer = {"image": image, "logits": logits}

    def __call__(self, image):
        self.seen = image
        return self.answer


# The network


def test_patches_are_in_the_order_row_column_colour():
    x = normal("patches", shape=(2, 3, 6, 9))
    patches = patchify(x, 3)
    assert patches.shape == (2, 27, 2, 3)
    for row, column, colour in ((0, 0, 0), (1, 2, 1), (2, 0, 2)):
        for i, j in ((0, 0), (1, 2)):
            here = patches[:, row * 9 + column * 3 + colour, i, j]
            assert torch.equal(here, x[:, colour, 3 * i + row, 3 * j + column])
    assert torch.equal(unpatchify(patches, 3), x)


@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (32, 32), (48, 24), (33, 11), (37, 1), (640, 32), (1, 1)])
def test_groups_are_the_largest_divisor_up_to_32(channels, groups):
    norm = GroupNorm(channels)
    init_weights(norm, lambda name: rng.generator(name))
    x = 3 * normal("groups", channels, shape=(2, channels, 4, 4)) + 1
    parts = x.view(2, groups, -1)
    wanted = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
    assert relative(norm.double()(x), wanted.view_as(x)) < 1e-12


def test_sizes_of_the_papers_encoder():
    with torch.device("meta"):
        network = MAE(resolution=256, channels=3, patch=8, base_channels=256, blocks=(3, 4, 6, 3), classes=1000)
        maps = network.encoder(torch.empty(1, 3, 256, 256), every_block=2)
    shapes = {name: tuple(x.shape[1:]) for name, x in maps.items()}
    assert list(shapes.items())[:5] == [
        ("conv1", (256, 32, 32)),
        *((f"layer{i}", (256 * 2 ** (i - 1), 64 // 2**i, 64 // 2**i)) for i in (1, 2, 3, 4)),
    ]
    inner = ["layer1_blk2", "layer2_blk2", "layer2_blk4", "layer3_blk2", "layer3_blk4", "layer3_blk6", "layer4_blk2"]
    assert list(shapes)[5:] == inner

    def conv(fan_in, fan_out, kernel=9):  # with its group norm
        return kernel * fan_in * fan_out + 2 * fan_out

    c, encoder = 256, conv(192, 256)
    for width, blocks, before in ((c, 3, c), (2 * c, 4, c), (4 * c, 6, 2 * c), (8 * c, 3, 4 * c)):
        encoder += conv(before, width) + (2 * blocks - 1) * conv(width, width) + 2 * width
        encoder += conv(before, width, 1) if before != width else 0
    decoder = conv(8 * c, 8 * c) + 192 * (c + 1)
    for x, skip, out in ((8 * c, 4 * c, 4 * c), (4 * c, 2 * c, 2 * c), (2 * c, c, c), (c, c, c)):
        decoder += 2 * (x + skip) + conv(x + skip, out) + conv(out, out)
    counts = [sum(w.numel() for w in part.parameters()) for part in (network.encoder, network.decoder, network.head)]
    assert counts == [encoder, decoder, 1000 * (8 * c + 1)]


def bilinear(size, new):
    """Weights of the old pixels (columns) in the new ones, between the centres of pixels."""
    places = (np.arange(new) + 0.5) * size / new - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)))
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


@pytest.mark.parametrize("grid", [8, 6, 5])
def test_decoder_goes_up_by_skips(grid):
    network = mae(resolution=2 * grid)
    decoder, weights = network.decoder, dict(network.decoder.named_parameters())
    maps = network.encoder(batch(2, side=2 * grid).x)

    def norm(x, name, groups=32):
        parts = x.view(len(x), groups, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return parts.view_as(x) * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def conv(x, name):
        return norm(F.conv2d(x, weights[f"{name}.0.weight"], padding=1), f"{name}.1").relu()

    x = conv(maps["layer4"], "bridge")
    for i, skip in enumerate(("layer3", "layer2", "layer1", "conv1")):
        up = bilinear(x.shape[-1], maps[skip].shape[-1])
        x = torch.cat((up @ x @ up.T, maps[skip]), dim=1)
        x = conv(conv(norm(x, f"ups.{i}.norm"), f"ups.{i}.project"), f"ups.{i}.refine")
    wanted = torch.einsum("oc,bchw->bohw", weights["head.weight"][:, :, 0, 0], x)
    wanted = wanted + weights["head.bias"][:, None, None]
    assert relative(decoder(maps), wanted) < 1e-12
    answers = network(batch(2, side=2 * grid).x)
    assert torch.equal(patchify(answers["image"], 2), decoder(maps))
    logits = maps["layer4"].mean((2, 3)) @ network.head.weight.T + network.head.bias
    assert relative(answers["logits"], logits) < 1e-12
    assert network(batch(2, side=2 * grid).x, heads=("logits",)).keys() == {"logits"}


def test_images_do_not_see_each_other():
    network, x = mae(), batch(4).x
    alone = torch.cat([network(image[None])["image"] for image in x])
    assert relative(network(x)["image"], alone) < 1e-12


def test_weights_start_as_flax_starts_them():
    before = torch.random.get_rng_state()
    kernel, dense = conv(128, 256, 3), Linear(512, 300, lecun_, kind="adam")
    for layer, fan_in in ((kernel, 9 * 128), (dense, 512)):
        layer.init_weights(lambda name: rng.generator("tests", "init", name))
        weight = layer.weight.detach() * math.sqrt(fan_in)
        count = weight.numel()
        assert abs(weight.mean()) < 4 / math.sqrt(count)
        assert abs(weight.square().mean() - 1) < 6 / math.sqrt(count)
        assert 2.27 < weight.abs().max() <= 2.2738  # two standard deviations of the law that was cut
        # P(|w| < 1) of the normal law cut at 2: erf(.8796 / sqrt 2) / erf(2 / sqrt 2)
        inside = math.erf(0.8796256610342398 / math.sqrt(2)) / math.erf(math.sqrt(2))
        assert abs((weight.abs() < 1).double().mean() - inside) < 3 / math.sqrt(count)
    assert not dense.bias.any()
    network = MAE(**SIZES)
    init_weights(network, lambda name: rng.generator("tests", name))
    again = MAE(**{**SIZES, "blocks": (2, 2, 1, 1)})
    init_weights(again, lambda name: rng.generator("tests", name))
    shared = network.state_dict().keys() & again.state_dict().keys()
    assert len(shared) == len(network.state_dict())
    assert all(torch.equal(network.state_dict()[name], again.state_dict()[name]) for name in shared)
    scales = [m for m in network.modules() if isinstance(m, GroupNorm)]
    assert all(m.weight.eq(1).all() and m.bias.eq(0).all() for m in scales)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_weight_is_adams():
    (group,) = parameter_groups(mae())
    assert group["kind"] == "adam"
    assert len(group["params"]) == len(list(mae().parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_channels": 48}, r"base_channels=48: .*144 and 96 channels in 32 groups; .* such as 64 \(an encoder"),
        ({"base_channels": 8}, "base_channels=8: .* such as 32"),
        ({"patch": 3}, "resolution 16 is not divisible by patch 3"),
        ({"blocks": (1, 2, 3)}, r"blocks=\[1, 2, 3\]: give four numbers"),
        ({"blocks": (1, 2, 0, 1)}, r"blocks=\[1, 2, 0, 1\]: .*at least 1"),
        ({"base_channels": 0}, "base_channels=0: at least one"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MAE(**{**SIZES, **changes})


def test_the_encoder_alone_takes_any_width():
    sizes = {"resolution": 8, "channels": 1, "base_channels": 5, "blocks": (1, 1, 1, 1)}
    encoder = MAEEncoder(patch=1, **sizes)
    init_weights(encoder, lambda name: rng.generator(name))
    assert encoder(torch.zeros(1, 1, 8, 8))["layer4"].shape == (1, 40, 1, 1)
    with pytest.raises(ValueError, match=r"stage 3 has one pixel and 20 groups of one channel.* set patch below 2"):
        MAEEncoder(patch=2, **sizes)
    assert UNetDecoder(64, 3).head.weight.shape == (3, 64, 1, 1)


# The objective


def test_loss_is_the_error_of_hidden_pixels_per_hidden_patch():
    data = batch(5)
    image, logits = normal("image", shape=(5, 3, 16, 16)), normal("logits", shape=(5, 7))
    drawn = replace(objective().draw(data, 0, 0), class_weight=0.3)
    drawn.hidden[4] = False
    network = Answers(image, logits)
    losses = objective()(network, data, drawn, keep_fields=True)
    errors, entropies = [], []
    for n in range(5):
        error, hidden_patches = 0.0, 0
        for i in range(8):
            for j in range(8):
                y, x = slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
                if drawn.hidden[n, i // 2, j // 2]:
                    error += (image[n, :, y, x] - data.x[n, :, y, x]).square().sum().item()
                    hidden_patches += 1
                    assert not network.seen[n, :, y, x].any()
                else:
                    assert torch.equal(network.seen[n, :, y, x], data.x[n, :, y, x])
        errors.append(error / max(hidden_patches, 1))
        entropies.append(math.log(logits[n].exp().sum()) - logits[n, data.y[n]].item())
    assert errors[4] == 0
    wanted = sum(0.3 * c + 0.7 * e for c, e in zip(entropies, errors, strict=True)) / 5
    assert losses.total.item() == pytest.approx(wanted, rel=1e-12)
    per_pixel = losses.per_sample["loss_reconstruction"] / data.x[0].numel()
    assert per_pixel.tolist() == pytest.approx([e / 12 for e in errors], rel=1e-12)  # 12 numbers in a patch
    assert losses.distances["cross_entropy"].tolist() == pytest.approx(entropies, rel=1e-12)
    assert losses.distances["accuracy"].tolist() == (logits.argmax(1) == data.y).double().tolist()
    assert torch.equal(losses.fields["masked"], network.seen)
    assert torch.equal(losses.fields["image"], image)


def test_a_perfect_network_has_no_reconstruction_error():
    data = batch()
    losses = objective()(Answers(data.x, torch.zeros(4, 7)), data, objective().draw(data, 0, 0))
    assert losses.total == 0
    drawn = objective().draw(data, 0, 199_999)
    losses = objective()(Answers(data.x, torch.zeros(4, 7)), data, drawn)
    assert losses.total.item() == pytest.approx(0.1 * math.log(7))


def test_shards_average_to_the_whole_batch_exactly():
    data, network, whole = batch(6), mae(), objective()
    drawn = whole.draw(data, 3, 197_500)
    assert 0 < drawn.class_weight < 0.1
    total = whole(network, data, drawn).total
    parts = []
    for index in range(3):
        rows = rng.BatchRows(index, 3).rows(2)
        part = Batch(data.x[rows], data.y[rows])
        mine = whole.draw(part, 3, 197_500, rng.BatchRows(index, 3))
        assert torch.equal(mine.hidden, drawn.hidden[rows])
        parts.append(whole(network, part, mine).total)
    assert torch.stack(parts).mean().item() == pytest.approx(total.item(), rel=1e-13)


def test_gradients_reach_every_weight_and_are_those_of_the_loss():
    data, network = batch(2), mae()
    drawn = objective().draw(data, 0, 199_000)
    objective()(network, data, drawn).total.backward()
    direction = {name: normal("direction", name, shape=tuple(w.shape)) for name, w in network.named_parameters()}
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())
    slope = sum((direction[name] * w.grad).sum() for name, w in network.named_parameters())
    values = []
    with torch.no_grad():
        for side in (1e-9, -2e-9):
            for name, weight in network.named_parameters():
                weight.add_(side * direction[name])
            values.append(objective()(network, data, drawn).total)
    assert slope.item() == pytest.approx(((values[0] - values[1]) / 2e-9).item(), rel=1e-4)


def test_weight_of_the_classes_by_step():
    paper = objective()
    steps = (0, 196_999, 197_000, 197_500, 198_000, 199_999)
    assert [paper.class_weight_at(step) for step in steps] == pytest.approx([0, 0, 0, 0.05, 0.1, 0.1])
    never = objective(class_steps=0)
    assert [never.class_weight_at(step) for step in steps] == [0] * 6
    at_once = objective(class_warmup=0)
    assert [at_once.class_weight_at(step) for step in (197_000, 197_001)] == [0, 0.1]
    assert paper.draw(batch(), 0, 197_500).class_weight == pytest.approx(0.05)


def test_draws_are_keyed_and_half_of_the_cells_are_hidden():
    data, law = batch(64, side=32), objective()
    drawn = law.draw(data, 0, 5)
    assert drawn.hidden.shape == (64, 8, 8)
    assert torch.equal(drawn.hidden, law.draw(data, 0, 5).hidden)
    assert not torch.equal(drawn.hidden, law.draw(data, 0, 6).hidden)
    assert not torch.equal(drawn.hidden, law.draw(data, 1, 5).hidden)
    few = law.draw(batch(2, side=32), 0, 5)
    assert torch.equal(few.hidden, drawn.hidden[:2])
    share = drawn.hidden.double().mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / 64  # four standard deviations of 4096 coins
    share = objective(mask_fraction=0.75).draw(data, 0, 5).hidden.double().mean().item()
    assert abs(share - 0.75) < 4 * 0.5 / 64
    assert law.hidden_pixels(drawn.hidden).shape == (64, 1, 32, 32)
    assert drawn.to(torch.device("meta")).hidden.is_meta


def test_augmentation_crops_and_mirrors_by_key():
    data, law = batch(32, side=16), objective(crop=CROP, flip=True)
    drawn = law.draw(data, 0, 1)
    assert drawn.crops.shape == (32, 4)
    assert ((drawn.crops[:, 2] * drawn.crops[:, 3] > 0.15) & (drawn.crops[:, 2:] <= 1).all(1)).all()
    assert 4 < drawn.mirrored.sum() < 28
    out = augmented(data.x, drawn)
    assert out.shape == data.x.shape
    assert out.abs().max() <= 1
    plain = augmented(data.x, replace(drawn, mirrored=None))
    for image, other, mirrored in zip(out, plain, drawn.mirrored, strict=True):
        assert torch.equal(image, other.flip(2) if mirrored else other)
    whole = replace(drawn, crops=torch.tensor([[0.0, 0, 1, 1]]).expand(32, 4), mirrored=None)
    assert relative(augmented(data.x, whole), data.x) < 1e-6
    assert augmented(data.x, objective().draw(data, 0, 1)) is data.x
    network = Answers(data.x, torch.zeros(32, 7))
    fields = law(network, data, drawn, keep_fields=True).fields
    assert torch.equal(fields["x"], out)
    assert torch.equal(network.seen, out.masked_fill(law.hidden_pixels(drawn.hidden), 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_fraction": 1.5}, r"mask_fraction=1\.5: it must be between 0 and 1"),
        ({"class_weight": -1}, "class_weight=-1"),
        ({"cell": 0}, "cell=0: at least 1"),
        ({"class_steps": -1}, "class_steps=-1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        objective(**changes)


def test_cells_that_do_not_fill_the_image_are_refused():
    with pytest.raises(ValueError, match=r"16 x 16 pixels are not a multiple .* 2 x 3 = 6 pixels"):
        objective(cell=3).draw(batch(), 0, 0)


def test_reconstructions_fill_the_holes_alone():
    data, answer = batch(3), normal("answer", shape=(3, 3, 16, 16))
    drawn = objective().draw(data, 0, 0)
    masked, filled, truth = objective().reconstructions(Answers(answer, torch.zeros(3, 7)), data, drawn)
    hidden = objective().hidden_pixels(drawn.hidden).expand_as(truth)
    assert torch.equal(truth, data.x)
    assert torch.equal(filled[hidden], answer[hidden])
    assert torch.equal(filled[~hidden], data.x[~hidden])
    assert torch.equal(masked[~hidden], data.x[~hidden])
    assert not masked[hidden].any()


# The one that is trained and kept


SETTINGS = MAESettings(
    **{"seed": 0, "patch": 2, "base_channels": 32, "blocks": (1, 1, 1, 1), "cell": 2, "mask_fraction": 0.5},
    **{"class_weight": 0.1, "class_steps": 1, "class_warmup": 1, "steps": 2, "batch": 4, "lr": 4e-3, "warmup_steps": 1},
    **{"weight_decay": 0.01, "clip": 2.0},
)


def test_the_class_of_a_held_out_image_is_that_of_the_whole_image():
    """The error is that of hidden pixels; here the network answers 0, and the class by the mean of what it sees."""
    levels, drawn = torch.arange(1.0, 8.0), objective().draw(batch(7), 0, 0)

    def network(image, heads=("image", "logits")):
        distances = (image.mean((1, 2, 3))[:, None] - levels).abs()
        return {"image": torch.zeros_like(image), "logits": -distances}

    data = Batch(levels[:, None, None, None].expand(7, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0, 0, 6]))
    found = objective().held_out_metrics(network, data, drawn)
    assert found["held_out_accuracy"].tolist() == [1, 1, 1, 1, 0, 0, 1]
    assert relative(found["held_out_error"], levels.square()) < 1e-6


DIGITS = Digits(name="digits", resolution=8, channels=1, classes=10, held_out_images=360)


def test_training_lowers_the_error():
    settings = replace(SETTINGS, steps=8, batch=16)
    images = to_float(DIGITS.held_out().images[:64])
    data = Batch(images, DIGITS.held_out().labels[:64])
    law = settings.objective()
    drawn = law.draw(data, 9, 0)

    def error(network):
        with torch.no_grad():
            return law(network, data, drawn).per_sample["loss_reconstruction"].mean().item() / 64

    before, after = error(settings.network(DIGITS)), error(train_mae.train_mae(DIGITS, settings))
    assert after < 0.5 * before


def test_an_encoder_is_kept_and_found_again(tmp_path, monkeypatch, caplog):
    first = cached_mae(DIGITS, SETTINGS, str(tmp_path))
    assert not first.training
    assert not any(weight.requires_grad for weight in first.parameters())
    (path,) = (tmp_path / "encoders").glob("*.pt")
    with monkeypatch.context() as patch:
        patch.setattr(train_mae, "train_mae", lambda *_: pytest.fail("trained again"))
        second = cached_mae(DIGITS, replace(SETTINGS, blocks=[1, 1, 1, 1]), str(tmp_path))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    path.write_bytes(path.read_bytes()[:1000])
    third = cached_mae(DIGITS, SETTINGS, str(tmp_path))
    assert "is damaged" in caplog.text
    assert all(torch.equal(value, third.state_dict()[name]) for name, value in first.state_dict().items())
    cached_mae(DIGITS, replace(SETTINGS, steps=1), str(tmp_path))
    cached_mae(replace(DIGITS, channels=3), replace(SETTINGS, steps=1), str(tmp_path))
    assert len(list((tmp_path / "encoders").glob("*.pt"))) == 3


def test_training_leaves_the_random_generator_and_the_threads_alone():
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        train_mae.train_mae(DIGITS, replace(SETTINGS, steps=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_an_encoder_that_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(UserError, match="feature encoder on data digits: resolution 8 is not divisible by patch 3"):
        cached_mae(DIGITS, replace(SETTINGS, patch=3), str(tmp_path))
    with pytest.raises(UserError, match=r"diverged at lr=1e\+30: lower it"):
        cached_mae(DIGITS, replace(SETTINGS, lr=1e30), str(tmp_path))
    assert not list((tmp_path / "encoders").glob("*.pt"))


# The presets


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [  # patch, grid, width of the last stage, steps, last steps with classes
        (["model=mae_r256", "data=imagenet256"], (8, 32, 2048, 30_000, 0)),
        (["model=mae_r256", "data=imagenet256_latents"], (1, 32, 2048, 30_000, 0)),
        (["model=mae_r640", "data=imagenet256"], (8, 32, 5120, 200_000, 3000)),
        (["model=mae_tiny", "data=digits"], (4, 8, 256, 150, 50)),
    ],
)
def test_presets(overrides, sizes):
    cfg = compose(overrides)
    with torch.device("meta"):
        network = make_part(cfg, "backbone")
    law = make_part(cfg, "objective")
    width = network.head.in_features
    assert (network.patch, network.grid, width, law.steps, law.class_steps) == sizes
    assert (law.patch, law.cell, law.mask_fraction, law.class_weight) == (network.patch, 2, 0.5, 0.1)
    assert network.classes == cfg.data.classes
    optimizer = make_part(cfg, "optimizer")(parameter_groups(network))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (4e-3, (0.9, 0.95), 0.01)
    assert cfg.trainer.gradient_clip_val == 2
    if cfg.name != "mae_tiny":
        assert cfg.batch == 8192
        assert cfg.schedule.warmup_fraction * cfg.steps == pytest.approx(4000)
        assert law.crop == CropLaw(area=[0.2, 1.0], ratio=[0.75, 4 / 3])
        assert law.flip
        assert ema_beta(8192, 8192, 1000 * cfg.ema.halflife_kimg[0], cfg.ema.rampup_ratio) == pytest.approx(0.9995)
    assert cfg.sampling.ema in validate.ema_names(cfg.ema.halflife_kimg)


def test_weight_decay_is_decoupled_and_everyones():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.zeros(1)
    cfg = compose(["model=mae_tiny", "optimizer.lr=0.1", "optimizer.weight_decay=0.5"])
    make_part(cfg, "optimizer")([{"params": [weight], "kind": "adam"}]).step()
    assert weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5))


def test_choices_of_features_compose_by_themselves():
    for name in ("raw", "mae_tiny", "mae_run", "mae_released", "paper_pixels"):
        cfg = compose(["model=mae_tiny", f"+drift_features={name}"]).drift_features
        assert cfg["_target_"].startswith("pmf_lightning.encoders.drifting.build.")
    settings = instantiate(compose(["+drift_features=mae_tiny"]).drift_features.settings, _convert_="all")
    tiny = make_part(compose(["model=mae_tiny", "data=digits"]), "objective")
    assert settings.objective() == tiny  # the train command makes the same encoder
    assert (settings.steps, settings.batch, settings.lr, settings.warmup_steps) == (150, 64, 4e-3, 15)
    released = instantiate(compose(["+drift_features=mae_released"]).drift_features)
    with pytest.raises(UserError, match=r"drift_features\.path is not set"):
        released(source=DIGITS, cache_dir=None)
