"""A battery on small data: one vector per image and member, gradients, fingerprints, what is refused."""

from contextlib import contextmanager

import pytest
import torch
from common import normal
from features_of_tests import noise_levels, write_inception
from tiny_battery import Small
from torch.nn import functional

from pmf_lightning import UserError, compose
from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.data.transforms import to_float
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.encoders.battery.hub_members import TransformersMember
from pmf_lightning.encoders.battery.inception_member import InceptionMember
from pmf_lightning.encoders.battery.members import Pixels
from pmf_lightning.encoders.battery.real import real_features
from pmf_lightning.encoders.build import make_battery
from pmf_lightning.encoders.inception import Inception

DIGITS = Digits("digits", 8, 1, 10, 360)
SHORT = [f"battery.members.{name}.settings.steps=1" for name in ("classifier0", "classifier1", "mlp", "mae")]
SHORT += ["battery.members.mae.settings.patch=1", "battery.members.mae.settings.batch=4"]
WIDTHS = {"classifier0": 64, "classifier1": 64, "mlp": 64, "pixels8": 64, "pixels16": 64}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return compose(["battery=digits", *SHORT, f"cache_dir={tmp_path_factory.mktemp('cache')}"])


@pytest.fixture(scope="module")
def battery(config):
    return make_battery(config.battery, list(WIDTHS), DIGITS, config.cache_dir)


def test_one_vector_per_image_and_member_with_a_gradient(battery):
    images = normal("images", shape=(3, 1, 8, 8), dtype=torch.float32).requires_grad_()
    found = battery.train().encode(images)
    assert {name: rows.shape for name, rows in found.items()} == {name: (3, n) for name, n in WIDTHS.items()}
    assert battery.widths(1, 8) == WIDTHS
    for name, rows in found.items():
        (slope,) = torch.autograd.grad(rows.square().sum(), images, retain_graph=True)
        assert (slope.flatten(1).norm(dim=1) > 0).all(), name
    assert not any(weight.requires_grad for weight in battery.parameters())
    assert not any(module.training for module in battery.modules())
    alone = battery.encode(images[:1])
    assert all(torch.allclose(alone[name], found[name][:1], atol=1e-5) for name in found)
    larger = battery.encode(normal("large", shape=(2, 1, 24, 24), dtype=torch.float32))
    assert {name: rows.shape[1] for name, rows in larger.items()} == WIDTHS, "they resize images themselves"


@pytest.mark.slow
def test_the_small_autoencoder_is_pooled_to_one_vector(config):
    battery = make_battery(config.battery, ["mae"], DIGITS, config.cache_dir)
    images = normal("mae", shape=(3, 1, 8, 8), dtype=torch.float32).requires_grad_()
    found = battery.encode(images)["mae"]
    assert found.shape == (3, 256) == (3, battery.widths(1, 8)["mae"])
    assert battery.encode(normal("large", shape=(2, 1, 24, 24), dtype=torch.float32))["mae"].shape == (2, 256)
    (slope,) = torch.autograd.grad(found[:, ::2].sum(), images)
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_members_are_the_networks_that_evaluation_uses(battery):
    levels, _ = DIGITS.train().batch(range(4))
    found = battery.encode(to_float(levels))
    for name in ("classifier0", "mlp"):
        torch.testing.assert_close(found[name], battery.members[name].net.embed(levels))
    torch.testing.assert_close(found["pixels8"], (levels / 127.5 - 1).flatten(1))
    large = normal("large", shape=(2, 3, 32, 32), dtype=torch.float32)
    wanted = large.unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(Pixels(8, source=Digits("digits", 32, 3, 10, 360))(large), wanted)


def test_fingerprints_tell_members_apart(battery):
    texts = battery.fingerprints()
    assert texts["pixels8"] == texts["pixels16"] == "Pixels 8", "both are the image itself"
    assert len(set(texts.values())) == 4
    two = Battery({name: battery.members[name] for name in ("mlp", "classifier0")})
    swapped = Battery({"mlp": battery.members["classifier0"], "classifier0": battery.members["mlp"]})
    assert two.fingerprint() != swapped.fingerprint() != battery.fingerprint()


class Repaired(Digits):
    """Digits whose first image cannot be read: the last stands in for it, with its label."""

    def train(self):
        images, labels = super().train().batch(range(30))
        labels[0], images[0] = labels[-1], images[-1]
        return Stated(images, labels)


class Unsplit(Digits):
    """Digits of which none are held out."""

    has_held_out = False


class Stated(ArrayDataset):
    """Its ``labels`` are those of the index."""

    def __init__(self, images, labels):
        super().__init__(images, labels)
        self.labels = 9 - labels

    def batch(self, indices):
        images, labels = super().batch(indices)
        return images, 9 - labels


def test_real_images_are_measured_once_with_the_labels_that_were_read(tmp_path, monkeypatch):
    source, members = Repaired("digits", 8, 1, 10, 360), {"pixels": Small(2), "mixed": Small(4, 6)}
    real = real_features(Battery(members), "data", source, ["rows"], str(tmp_path))
    images, labels = source.train().batch(range(30))
    for name, member in members.items():
        assert member.calls == 1
        assert torch.equal(real[name].rows, member.encode(to_float(images))["features"])
        assert torch.equal(real[name].labels, labels)
    first, second = sorted((tmp_path / "features").glob("*.pt"))
    first.write_bytes(b"damaged")
    second.unlink()
    fresh = {"pixels": Small(2), "mixed": Small(4, 6)}
    real_features(Battery(fresh), "data", source, ["rows"], str(tmp_path))
    assert [member.calls for member in fresh.values()] == [1, 1]

    @contextmanager
    def waited(path):  # another process measured meanwhile
        path.write_bytes(kept[path])
        yield

    kept = {path: path.read_bytes() for path in (first, second)}
    first.unlink()
    second.unlink()
    monkeypatch.setattr("pmf_lightning.encoders.battery.real.sole_writer", waited)
    theirs = {"pixels": Small(2), "mixed": Small(4, 6)}
    again = real_features(Battery(theirs), "data", source, ["rows"], str(tmp_path))
    assert [member.calls for member in theirs.values()] == [0, 0]
    assert all(torch.equal(again[name].rows, real[name].rows) for name in real)


def test_too_few_held_out_images_are_refused_before_the_others_are_measured(tmp_path):
    for source, there in ((Repaired("digits", 8, 1, 10, 360), 360), (Unsplit("digits", 8, 1, 10, 360), 0)):
        member = Small(2)
        with pytest.raises(UserError, match=f"holds out {there} images, and the loss compares 361 of them"):
            real_features(Battery({"pixels": member}), "data", source, ["rows"], str(tmp_path), held_out=361)
        assert member.calls == 0
    found = real_features(
        Battery({"pixels": Small(2)}), "data", Repaired("digits", 8, 1, 10, 360), ["rows"], str(tmp_path), 360
    )
    assert len(found["pixels"].held_out) == 360


def test_an_unknown_member_and_missing_weights_are_named(config, tmp_path):
    with pytest.raises(
        UserError, match=r"clasifier0: there is no such encoder; did you mean classifier0 or classifier1"
    ):
        make_battery(config.battery, ["clasifier0"], DIGITS, None)
    with pytest.raises(
        UserError, match=r"battery\.members\.inception\.weights: the weights of Inception are not at .*none"
    ):
        InceptionMember(str(tmp_path / "none.pth"))


@pytest.mark.slow
def test_what_is_refused_on_the_command_line():
    with pytest.raises(UserError, match="there is no such battery; did you mean colour"):
        compose(["battery=color"])
    with pytest.raises(UserError, match=r"battery\.members\.pixels8\.side=0: .*1 or more"):
        compose(["battery=digits", "battery.members.pixels8.side=0"])
    assert list(compose(["battery=digits", "~battery.members.mae"]).battery.members) == list(WIDTHS)
    added = ["battery=digits", "+encoder@battery.members.timm=timm", "battery.members.timm.model=resnet50.a1_in1k"]
    assert compose(added).battery.members.timm.pool == "head"
    cfg = compose(["battery=rdm14"]).battery
    with pytest.raises(
        UserError, match=r"battery\.members\.cradio\.remote_code is not set: nvidia.* set it to true if"
    ):
        make_battery(cfg, ["cradio"], DIGITS, None)
    with pytest.raises(
        UserError, match=r"battery\.members\.dreamsim: the package dreamsim is not installed; pip install"
    ):
        make_battery(cfg, ["dreamsim"], DIGITS, None)


def test_a_foreign_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    options = {"side": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "output": 0, "width": 4}
    with pytest.raises(
        UserError, match=r"members\.x: the package transformers is not installed; pip install 'pmf_light"
    ):
        TransformersMember("some/model", name="x", weights=None, **options)


@pytest.mark.slow
def test_inception_has_a_gradient_and_the_features_of_fid(tmp_path):
    levels = noise_levels("inception", 3, (3, 16, 16))
    path = write_inception(tmp_path / "inception.pth", functional.interpolate(levels, 299))
    member = InceptionMember(str(path))
    images = (levels.float() / 128 - 1).requires_grad_()  # what FID makes of levels
    found = member(images)
    theirs = Inception("inception", str(path), False, 3).open(torch.device("cpu"))(levels).features
    torch.testing.assert_close(found, theirs, rtol=1e-3, atol=1e-4)
    assert found.shape == (3, 2048)
    found.square().sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(member(images), found)


@pytest.mark.slow
def test_a_vae_of_diffusers_gives_the_means_of_cells(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from pmf_lightning.encoders.battery.hub_members import VAEMember

    sizes = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2}
    sizes |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "latent_channels": 2}
    with torch.random.fork_rng(devices=[]):
        diffusers.AutoencoderKL(**sizes).save_pretrained(tmp_path / "vae")
    options = {"name": "flux_vae", "folder": "vae", "side": 16, "cell": 4, "width": 2 * 4}
    member = VAEMember("a/b", weights=str(tmp_path / "vae"), **options)
    images = normal("vae", shape=(2, 3, 16, 16), dtype=torch.float32).requires_grad_()
    means = member.net.encode(images).latent_dist.mean  # [2, 2, 8, 8]
    torch.testing.assert_close(member(images), means.unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5)).flatten(1))
    member(images).sum().backward()
    assert images.grad.abs().sum() > 0
    with pytest.raises(UserError, match=r"flux_vae\.weights=none: no such folder"):
        VAEMember("a/b", weights="none", **options)
