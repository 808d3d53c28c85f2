"""Files of statistics: three dialects in and out, and every way in which they can be wrong."""

import json
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from features_of_tests import Tiny, noise_levels, of_config, protocol, write_pngs
from ranks import together
from tiny_shards import numbered, write_shards

from pmf_lightning.config.compose import compose
from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase
from pmf_lightning.data.shards.source import Shards
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.encoders.base import extract
from pmf_lightning.encoders.dinov2 import DinoV2
from pmf_lightning.evaluation.build import complete_extractor, missing_reference, open_evaluator
from pmf_lightning.evaluation.image_files import open_images
from pmf_lightning.evaluation.references import Reference, load_reference
from pmf_lightning.evaluation.statistics import cached_statistics, save_all, split_statistics, statistics
from pmf_lightning.make_stats import make_stats
from pmf_lightning.utils.cache import file_sha256
from pmf_lightning.utils.errors import UserError

CPU = torch.device("cpu")


def moments(width=6, seed="moments"):
    features = noise_levels(seed, 3 * width).flatten(1)[:, :width].double().numpy() / 100
    return features.mean(0), np.cov(features, rowvar=False)


class Shelf(DataSourceBase):
    """Data in memory."""

    name, resolution, channels, classes = "shelf", 8, 3, 4

    def __init__(self, count=30):
        self.images = noise_levels("shelf", count)
        self.read = 0

    def check(self):
        pass

    def train(self):
        self.read += 1
        return ArrayDataset(self.images, torch.arange(len(self.images)) % 4)

    def held_out(self):
        return ArrayDataset(self.images[:5], torch.arange(5) % 4)

    def fingerprint(self):
        return "5e1f"


@pytest.fixture
def stored(tmp_path):
    """A path, and a writer of .npz files at it."""
    path = tmp_path / "stats.npz"

    def write(**arrays):
        np.savez(path, **arrays)
        return path

    return write


# Dialects


@pytest.mark.parametrize("keys", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
@pytest.mark.parametrize("width", [np.float32, np.float64])
def test_npz_of_both_dialects(stored, keys, width):
    mu, sigma = (part.astype(width) for part in moments())
    path = stored(**dict(zip(keys, (mu, sigma), strict=True)))
    reference = load_reference(path, "inception")
    assert reference.mu.dtype == reference.sigma.dtype == torch.float64
    np.testing.assert_array_equal(reference.mu, mu.astype(np.float64))
    np.testing.assert_allclose(reference.sigma, sigma.astype(np.float64), atol=1e-7)
    assert reference.file["dialect"] == ("mu_sigma" if keys[0] == "mu" else "ref_mu_sigma")
    assert reference.file["sha256"] == file_sha256(path)
    assert (reference.n, reference.features, reference.images, reference.about) == (None, None, None, {})


@pytest.mark.parametrize("protocol_of_pickle", range(6))
def test_pickles_of_edm2_in_every_protocol_of_pickle(tmp_path, protocol_of_pickle):
    fid, dino = moments(6), moments(4, "dino")
    held = {"fid": dict(zip(("mu", "sigma"), fid, strict=True)), "fd_dinov2": {"mu": dino[0], "sigma": dino[1]}}
    path = tmp_path / "edm2.pkl"
    path.write_bytes(pickle.dumps(held, protocol=protocol_of_pickle))
    np.testing.assert_array_equal(load_reference(path, "inception").mu, fid[0])
    np.testing.assert_array_equal(load_reference(path, "dinov2").mu, dino[0])
    assert load_reference(path, "dinov2").file["dialect"] == "edm2"
    with pytest.raises(UserError, match=r"holds fid, fd_dinov2; {'classifier': {'mu': \.\.\., 'sigma'"):
        load_reference(path, "classifier")


def test_pickles_of_numpy_1(tmp_path):
    """Names of numpy before its second version, as EDM2's own files have them."""
    mu, sigma = moments()
    new = pickle.dumps({"fid": {"mu": mu, "sigma": sigma}}, protocol=2)
    old = new.replace(b"numpy._core.", b"numpy.core.")
    assert old != new
    (tmp_path / "old.pkl").write_bytes(old)
    np.testing.assert_array_equal(load_reference(tmp_path / "old.pkl", "inception").mu, mu)


class Harm:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    path, victim = tmp_path / "bad.pkl", tmp_path / "victim"
    path.write_bytes(pickle.dumps({"fid": Harm(victim)}))
    with pytest.raises(
        UserError, match=r"bad.pkl: cannot be read as a pickle of arrays \(.*io.open, which does not belong to an array"
    ):
        load_reference(path, "inception")
    assert not victim.exists()


def test_files_of_adm_hold_images(stored):
    mu, sigma = moments()
    images = noise_levels("adm", 9).permute(0, 2, 3, 1).numpy()
    path = stored(mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma, arr_0=images)
    reference = load_reference(path, "inception", most_images=5)
    assert torch.equal(reference.images, noise_levels("adm", 9)[:5])
    path = stored(mu=mu, sigma=sigma, arr_0=images.astype(np.float32))
    with pytest.raises(UserError, match=r"arr_0 is float32 .*not uint8 \[n, H, W, 3\]"):
        load_reference(path, "inception")


# Refusals


def broken(change):
    mu, sigma = moments()
    return {"mu": mu, "sigma": sigma} | change(mu, sigma)


WRONG = {
    "do not match": lambda mu, sigma: {"sigma": sigma[:5, :5]},
    "mean (6, 1) and covariance": lambda mu, sigma: {"mu": mu[:, None]},
    "some of its numbers are not finite": lambda mu, sigma: {"mu": np.where(mu > mu.mean(), np.nan, mu)},
    "covariance is not symmetric": lambda mu, sigma: {"sigma": sigma + np.triu(np.ones_like(sigma), 1)},
    "no positive trace": lambda mu, sigma: {"sigma": -sigma},
    "not floats": lambda mu, sigma: {"mu": mu.astype(np.int64)},
    "its features are (3, 5), its mean has 6": lambda mu, sigma: {"features": np.zeros((3, 5), np.float32)},
    "its metadata is not JSON; make": lambda mu, sigma: {"about": np.array("{")},
    "not a JSON object": lambda mu, sigma: {"about": np.array("[1]")},
}


@pytest.mark.parametrize("message", WRONG)
def test_moments_that_cannot_be(stored, message):
    path = stored(**broken(WRONG[message]))
    with pytest.raises(UserError) as refused:
        load_reference(path, "inception")
    assert str(refused.value).startswith(f"reference={path}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(3)}, "holds mean; moments are called mu and sigma, or ref_mu and ref_sigma"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "has images and no moments; .*make_stats images="),
        ({"mu": np.array([{}], object), "sigma": np.zeros(1)}, "cannot be read as .npz"),
    ],
)
def test_npz_without_moments(stored, arrays, message):
    with pytest.raises(UserError, match=message):
        load_reference(stored(**arrays), "inception")


@pytest.mark.parametrize("name", ["cut.npz", "cut.pkl"])
def test_files_that_end_early(stored, tmp_path, name):
    mu, sigma = moments()
    whole = stored(mu=mu, sigma=sigma).read_bytes() if name.endswith("npz") else pickle.dumps({"fid": mu})
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        load_reference(path, "inception")


@pytest.mark.parametrize("name", ["array.npy", "words.json"])
def test_files_that_are_none(tmp_path, name):
    path = tmp_path / name
    np.save(path, np.zeros(3)) if name.endswith("npy") else path.write_text("{}")
    with pytest.raises(UserError, match=f"{name}: cannot be read as .npz: it is not one"):
        load_reference(path, "inception")


def test_a_missing_file_and_no_file(tmp_path):
    with pytest.raises(UserError, match=r"gone.npz: no such file; make one with pmf_lightning.make_stats"):
        load_reference(tmp_path / "gone.npz", "inception")
    words = missing_reference(of_config("jit"), 256)
    assert "jit_in256_stats.npz, from the folder fid_stats of github.com/LTH14/JiT" in words
    assert "make_stats" in words
    both = missing_reference(of_config("jit"), 64)
    assert "jit_in256_stats.npz (256 px), jit_in512_stats.npz (512 px)" in both


# What does not belong together


@pytest.fixture
def made(tmp_path):
    """Statistics of the shelf, as a file."""
    return save_all(split_statistics(Shelf(), Tiny(), None, 7, 30, CPU), tmp_path / "shelf.npz")[0]


def opened(reference, **changes):
    images = {"resolution": 8, "classes": 4, "channels": 3, "crop": None, **changes}
    extractor = images.pop("extractor", Tiny())
    return open_evaluator(protocol(), extractor, reference, batch_size=8, device="cpu", **images)


def test_a_reference_that_fits(made):
    assert opened(made).reference.about["data"] == "shelf"
    assert opened(made, classes=None).reference.n == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 16}, "resolution is 8 in the file and 16 here"),
        ({"classes": 10}, "classes is 4 in the file and 10 here"),
        ({"crop": CROP_RULE}, f"crop is none in the file and {CROP_RULE} here"),
        ({"extractor": Tiny(words="tiny 2")}, "made with the features tiny 1, extractor=tiny is tiny 2"),
        ({"extractor": Tiny(features=2048)}, "moments of 6 features, extractor=tiny makes 2048"),
        ({"channels": 4}, "extractor=tiny: it sees images of 1 or 3 channels, these have 4"),
    ],
)
def test_a_reference_of_something_else(made, changes, message):
    with pytest.raises(UserError) as refused:
        opened(made, **changes)
    assert message in str(refused.value)
    assert "make" in str(refused.value) or "choose" in str(refused.value)


def test_published_files_are_known_by_their_names(tmp_path):
    mu, sigma = moments()
    np.savez(tmp_path / "tiny16.npz", mu=mu, sigma=sigma)
    assert opened(tmp_path / "tiny16.npz", resolution=16).reference.about == {}
    with pytest.raises(UserError, match=r"tiny16.npz: resolution is 16 in the file and 8 here"):
        opened(tmp_path / "tiny16.npz")


def test_references_that_are_not_there(made):
    with pytest.raises(UserError, match=r"reference is not set; protocol=jit compares with tiny8.npz, from a shelf"):
        opened(None)
    with pytest.raises(UserError, match="reference=data: no data are configured"):
        opened("data")


# Making statistics


def test_all_dialects_come_back(tmp_path):
    reference = split_statistics(Shelf(), Tiny(), None, 7, 12, CPU)
    levels = noise_levels("shelf", 30)
    features = extract(Tiny().open(CPU), levels, 5, CPU).features
    np.testing.assert_allclose(reference.sigma, np.cov(features.double().numpy(), rowvar=False), rtol=1e-5)
    paths = save_all(reference, tmp_path / "s.npz")
    assert [path.name for path in paths] == ["s.npz", "s_ref.npz", "s.pkl"]
    for path, dialect in zip(paths, ("mu_sigma", "ref_mu_sigma", "edm2"), strict=True):
        back = load_reference(path, "tiny")
        assert torch.equal(back.mu, reference.mu)
        assert torch.equal(back.sigma, reference.sigma)
        assert back.file["dialect"] == dialect
        assert back.n == 30
        assert dict(back.about) == dict(reference.about)
    kept = load_reference(paths[0], "tiny").features
    assert kept.shape == (12, 6)
    places = places_of(kept, features)  # features of real images, in their order
    assert places == sorted(set(places)) != list(range(12))


def places_of(rows, features) -> list[int]:
    """Which of ``features`` every row is, up to the last bits, which depend on the size of a batch."""
    distances, places = (rows[:, None] - features).norm(dim=2).min(1)
    assert distances.max() < 1e-5
    return places.tolist()


def test_some_of_the_images_chosen_by_chance():
    some = split_statistics(Shelf(), Tiny(), 10, 3, 10, CPU)
    again = split_statistics(Shelf(), Tiny(), 10, 4, 10, CPU, num_workers=1)
    assert (some.n, len(some.features)) == (10, 10)
    torch.testing.assert_close(some.features, again.features)
    features = extract(Tiny().open(CPU), noise_levels("shelf", 30), 5, CPU).features
    places = places_of(some.features, features)
    assert places == sorted(set(places)) != list(range(10))
    with pytest.raises(UserError, match="n=31: the training split of shelf has 30 images"):
        split_statistics(Shelf(), Tiny(), 31, 3, 10, CPU)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_records_are_one_line_whoever_reads(tmp_path, num_workers):
    write_shards(tmp_path, numbered(12), np.arange(12) % 4, 12)
    tar = tmp_path / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"NUMPY", b"MUMPY"))
    shards = Shards("shards", str(tmp_path), 4, 3, 4, held_out_fraction=0, max_bad=0.1)
    with pytest.raises(UserError, match=r"cannot be read.*verify=true") as refused:
        split_statistics(shards, Tiny(), None, 4, 0, CPU, num_workers)
    assert "\n" not in str(refused.value)


def test_measuring_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    split_statistics(Shelf(), Tiny(), None, 8, 0, CPU)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"), [({"n": 1}, "n=1"), ({"batch_size": 0}, "batch_size=0"), ({"features": -1}, "features=-1")]
)
def test_statistics_that_cannot_be(change, message):
    images = noise_levels("shelf", 4)
    asked = {"n": 4, "batch_size": 2, "features": 0, **change}
    with pytest.raises(UserError, match=message):
        statistics(lambda first, end: images[first:end], extractor=Tiny(), device=CPU, about={}, **asked)


def test_latents_have_no_statistics_of_pixels():
    shelf = Shelf()
    shelf.latents = True
    with pytest.raises(UserError, match="data=shelf: statistics are of pixels, these are latents"):
        split_statistics(shelf, Tiny(), None, 8, 0, CPU)


def on_a_machine_of_its_own(folder):
    dist.init_process_group("gloo")
    return cached_statistics(Shelf(), Tiny(), 8, 30, CPU, str(folder / str(dist.get_rank())))


def test_machines_need_no_cache_in_common(tmp_path):
    first, second = together(2, on_a_machine_of_its_own, tmp_path)
    for name in ("mu", "sigma", "features"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.file == second.file


def test_statistics_of_the_data_at_hand_are_measured_once(tmp_path):
    shelf = Shelf()
    first = cached_statistics(shelf, Tiny(), 8, 30, CPU, str(tmp_path))
    again = cached_statistics(shelf, Tiny(), 8, 30, CPU, str(tmp_path))
    assert shelf.read == 1
    assert torch.equal(first.sigma, again.sigma)
    assert again.file["path"].startswith("data=shelf (cached at ")
    cached_statistics(shelf, Tiny(words="tiny 2"), 8, 30, CPU, str(tmp_path))
    assert shelf.read == 2
    judge = open_evaluator(
        protocol(),
        Tiny(),
        "data",
        batch_size=8,
        device="cpu",
        resolution=8,
        classes=4,
        source=shelf,
        cache_dir=str(tmp_path),
    )
    assert torch.equal(judge.reference.mu, first.mu)
    assert shelf.read == 2
    for stored in (tmp_path / "statistics").glob("*.npz"):
        stored.write_bytes(stored.read_bytes()[:-50])
    assert torch.equal(cached_statistics(shelf, Tiny(), 8, 30, CPU, str(tmp_path)).sigma, first.sigma)
    assert shelf.read == 3
    assert len(cached_statistics(shelf, Tiny(), 8, 12, CPU, str(tmp_path)).features) == 12


# A second file for precision and recall


def parts(reference, real, **changes):
    return opened(reference, precision_recall_reference=real, **changes)


def test_precision_and_recall_compare_with_the_second_file(made, tmp_path):
    """Features of make_stats or images: the distance keeps to the moments, these two scores to the other images."""
    others = noise_levels("others", 20)
    np.savez(tmp_path / "val.npz", arr_0=others.permute(0, 2, 3, 1).numpy())
    save_all(statistics(lambda first, end: others[first:end], 20, Tiny(), 7, 20, CPU, {}), tmp_path / "val_stats.npz")
    fake = noise_levels("fake", 24)

    def judged(real):
        return parts(made, real)(lambda labels, first: fake[first : first + len(labels)], 24, 4)

    alone, images, features = (judged(x) for x in (None, tmp_path / "val.npz", tmp_path / "val_stats.npz"))
    assert (images.fid, images.kid) == (alone.fid, alone.kid)
    assert (images.precision, images.recall) == (features.precision, features.recall)
    assert (images.precision, images.recall) != (alone.precision, alone.recall)
    bare = Reference(*(torch.from_numpy(x).double() for x in moments()))
    assert parts(bare, tmp_path / "val.npz").without_features().real is None
    scores = parts(bare, tmp_path / "val.npz")(lambda labels, first: fake[first : first + len(labels)], 24, 4)
    assert (scores.precision, scores.recall, scores.kid) == (images.precision, images.recall, None)


def test_the_second_files_of_the_protocols():
    named = {name: dict(of_config(name).reference.precision_recall) for name in ("jit", "adm", "pmf_jax", "drifting")}
    assert named == {"jit": {}, "adm": {}, "pmf_jax": {}, "drifting": {256: "imagenet_val_prc_arr0.npz"}}


def test_published_files_of_pmf_and_imf():
    sides = of_config("pmf_jax").reference.sides
    assert sides["imagenet_256_fid_stats.npz"] == sides["imagenet_256_fid_stats_torch.npz"] == 256
    assert sides["imagenet_512_fid_stats.npz"] == 512
    assert "compares with imagenet_512_fid_stats.npz" in missing_reference(of_config("pmf_jax"), 512)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "no such file; give an .npz of images"),
        (b"no zip", "cannot be read as .npz"),
        ({"mu": np.zeros(6)}, "holds mu; images are called arr_0"),
        ({"arr_0": np.zeros((4, 8, 8, 3))}, "arr_0 is float64 (4, 8, 8, 3), not uint8"),
        ({"arr_0": np.zeros((4, 8, 8), np.uint8)}, "arr_0 is uint8 (4, 8, 8), not uint8 [n, H, W, 3]"),
        ({"arr_0": np.zeros((4, 16, 16, 3), np.uint8)}, "resolution is 16 in the file and 8 here"),
        ({"features": np.zeros((4, 5), np.float32)}, "5 features, extractor=tiny makes 6"),
        ({"features": np.full((4, 6), np.nan, np.float32)}, "features are float32 (4, 6), not finite floats"),
        ({"features": np.zeros((4, 6), np.float32), "about": np.array("{")}, "its metadata is not JSON"),
        (
            {"features": np.zeros((4, 6), np.float32), "about": np.array('{"extractor": "tiny 2"}')},
            "made with the features tiny 2, extractor=tiny is tiny 1",
        ),
        (
            {"features": np.zeros((4, 6), np.float32), "about": np.array('{"resolution": 64}')},
            "resolution is 64 in the file and 8 here",
        ),
        ({"arr_0": np.array([None])}, "cannot be read as .npz"),
    ],
)
def test_second_files_that_cannot_be(made, tmp_path, arrays, message):
    path = tmp_path / "val.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(UserError) as refused:
        parts(made, path)
    assert str(refused.value).startswith(f"precision_recall_reference={path}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


# The command


def run_make_stats(tmp_path, *arguments):
    return make_stats(compose([f"cache_dir={tmp_path}/cache", "extractor=classifier", *arguments], "make_stats"))


def test_make_stats_of_digits_and_of_their_pictures(tmp_path):
    cheap = ["extractor.settings.steps=2", "data=digits", "data.resolution=16"]
    made = run_make_stats(tmp_path, *cheap, f"out={tmp_path}/digits.npz", "n=50", "features=20", "batch_size=16")
    assert [path.name for path in made["paths"]] == ["digits.npz", "digits_ref.npz", "digits.pkl"]
    assert made["features"] == 20
    about = made["about"]
    assert (about["n"], about["resolution"], about["channels"], about["classes"]) == (50, 16, 1, 10)
    assert about["extractor"].startswith("classifier of digits ")
    pictures = write_pngs(tmp_path / "pictures", noise_levels("pictures", 9, (1, 16, 16)))
    made = run_make_stats(tmp_path, *cheap, f"images={pictures}", f"out={tmp_path}/pictures.npz")
    assert (made["about"]["n"], made["features"], made["about"]["channels"]) == (9, 9, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "out is not set"),
        (["out=stats.txt"], "out=stats.txt: statistics are written as .npz .*set out=stats.npz"),
        (["out=s.npz"], "no images to measure"),
        (["out=s.npz", "data=digits", "n=1"], "n=1: set it to an integer, 2 or more"),
        (["out=s.npz", "data=digits", "num_workers=-1"], "num_workers=-1"),
        (["out=s.npz", "data=digits", "device=gpux"], "device=gpux"),
        (["out=s.npz", "data=digits", "n=5000"], "n=5000: the training split of digits has 1437"),
        (
            ["out=s.npz", "data=digits", "extractor=inception", "extractor.weights=no.pth"],
            "weights of Inception are not at",
        ),
        (["out=s.npz", "images=nowhere"], "extractor=classifier: it is trained on the data at hand; set data="),
        (["out=s.npz", "images=nowhere", "data=digits"], "images=nowhere: no such file or folder"),
    ],
)
def test_make_stats_refuses_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as refused:
        run_make_stats(tmp_path, *arguments)
    assert "\n" not in str(refused.value)


# Existing images


def test_folders_and_npz_hold_the_same_images(tmp_path):
    levels = noise_levels("sets", 11)
    folder = write_pngs(tmp_path / "folder", levels)
    np.savez(tmp_path / "stored.npz", arr_0=levels.permute(0, 2, 3, 1).numpy())
    np.savez_compressed(tmp_path / "packed.npz", arr_1=np.arange(11), arr_0=levels.permute(0, 2, 3, 1).numpy())
    for path in (folder, tmp_path / "stored.npz", tmp_path / "packed.npz"):
        images = open_images(path, 3)
        assert (len(images), images.shape) == (11, (3, 8, 8))
        assert torch.equal(images(3, 7), levels[3:7])
        assert torch.equal(images(0, 11), levels)


def test_grey_images_for_networks_of_colours(tmp_path):
    levels = noise_levels("grey", 4, (1, 8, 8))
    np.savez(tmp_path / "grey.npz", arr_0=levels.permute(0, 2, 3, 1).numpy())
    assert torch.equal(open_images(tmp_path / "grey.npz", 3)(0, 4), levels.expand(-1, 3, -1, -1))
    assert torch.equal(open_images(write_pngs(tmp_path / "grey", levels), 3)(0, 4), levels.expand(-1, 3, -1, -1))
    assert torch.equal(open_images(tmp_path / "grey", 1)(0, 4), levels)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("damage", [bytes(40), b"\xff" * 400], ids=["bits", "stream"])
def test_damaged_images_are_one_line(tmp_path, save, damage):
    path = tmp_path / "images.npz"
    save(path, arr_0=noise_levels("damaged", 20, (3, 32, 32)).permute(0, 2, 3, 1).numpy())
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + damage + content[half + len(damage) :])
    images = open_images(path, 3)
    with pytest.raises(UserError, match=r"images.npz: damaged \(.*; get or write it again"):
        images(0, 20)


def test_images_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no image"):
        open_images(tmp_path / "empty", 3)
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((2, 8, 8, 3)))
    with pytest.raises(UserError, match=r"floats.npz: arr_0 is float64 \(2, 8, 8, 3\), not uint8"):
        open_images(tmp_path / "floats.npz", 3)
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(UserError, match=r"other.npz: holds no readable arr_0"):
        open_images(tmp_path / "other.npz", 3)
    np.savez(tmp_path / "wide.npz", arr_0=np.zeros((2, 8, 4, 3), np.uint8))
    for path in (tmp_path / "wide.npz", write_pngs(tmp_path / "wide", noise_levels("wide", 1, (3, 8, 4)))):
        with pytest.raises(UserError, match=r"wide.*: they have 8 x 4 pixels \(height x width\), and .*; crop them"):
            open_images(path, 3)
    (tmp_path / "cat.JPG").touch()
    with pytest.raises(UserError, match=r"cat.JPG: that is one image; give the folder"):
        open_images(tmp_path / "cat.JPG", 3)
    folder = write_pngs(tmp_path / "mixed", noise_levels("mixed", 3))
    (folder / "0003.png").write_bytes(b"no png")
    write_pngs(tmp_path / "larger", noise_levels("larger", 1, (3, 16, 16)))
    (tmp_path / "larger" / "0000.png").rename(folder / "0004.png")
    images = open_images(folder, 3)
    with pytest.raises(UserError, match=r"0003.png: cannot be read as an image"):
        images(0, 4)
    with pytest.raises(UserError, match=r"0004.png: \(16, 16\) pixels, 0000.png has \(8, 8\)"):
        images(4, 5)


# Features that are not Inception's


HUBCONF = """
import torch

def dinov2_vits14(pretrained=True):
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 7))
    if pretrained:
        raise OSError("no network")
    return model
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache with a small stand-in for DINOv2: its code and its weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    code = tmp_path / "facebookresearch_dinov2_main"
    code.mkdir()
    (code / "hubconf.py").write_text(HUBCONF)
    (tmp_path / "checkpoints").mkdir()
    numbers = noise_levels("dino", 7, (3, 2, 2)).flatten(1).float() / 255
    torch.save(
        {"2.weight": numbers, "2.bias": torch.arange(7.0)}, tmp_path / "checkpoints" / "dinov2_vits14_pretrain.pth"
    )
    return tmp_path


def dino(**changes) -> DinoV2:
    parts = {"name": "dinov2", "model": "dinov2_vits14", "features": 7, "repository": None, "weights": None}
    return DinoV2(**{**parts, "download": False, "batch": 4, **changes})


def test_dinov2_sees_what_torch_fidelity_shows_it(hub):
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    theirs = FeatureExtractorDinoV2.__new__(FeatureExtractorDinoV2)  # its constructor asks the network
    torch.nn.Module.__init__(theirs)
    theirs.features_list, theirs.feature_extractor_internal_dtype = ["dinov2"], torch.float32
    theirs.model = dino()._load()
    images = noise_levels("seen", 5, (3, 40, 40))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ours = extract(dino().open(CPU), images, 4, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(ours.features, theirs(images)[0])
    assert ours.logits is None
    assert dino().fingerprint().startswith("dinov2_vits14 224 ")


def test_what_dinov2_misses_is_named(hub):
    weights = hub / "checkpoints" / "dinov2_vits14_pretrain.pth"
    weights.rename(hub / "moved.pth")
    with pytest.raises(UserError, match=f"{weights} does not exist; get dinov2_vits14_pretrain.pth"):
        dino().check()
    dino(weights=str(hub / "moved.pth")).check()
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="not the weights of dinov2_vits14"):
        dino().open(CPU)
    with pytest.raises(
        UserError, match=r"elsewhere/hubconf.py does not exist; get the code of .*extractor.repository="
    ):
        dino(repository="elsewhere").check()


def test_dinov2_is_fetched_only_when_asked_for(hub, monkeypatch):
    asked = []

    def fetched(project, model, **others):
        asked.append((project, model))
        raise OSError("no network")

    (hub / "checkpoints" / "dinov2_vits14_pretrain.pth").unlink()
    monkeypatch.setattr(torch.hub, "load", fetched)
    with pytest.raises(UserError, match="does not exist"):
        dino().open(CPU)
    assert asked == []
    with pytest.raises(UserError, match=r"dinov2_vits14 cannot be fetched \(OSError: no network\)"):
        dino(download=True).open(CPU)
    assert asked == [("facebookresearch/dinov2", "dinov2_vits14")]


def test_a_classifier_needs_data():
    from pmf_lightning.pipeline.parts import make_part

    extractor = make_part(compose(["extractor=classifier"], "evaluate"), "extractor")
    with pytest.raises(UserError, match="extractor=classifier: it is trained on the data at hand; set data="):
        complete_extractor(extractor, None, None)
    assert json.dumps(complete_extractor(extractor, Shelf(), None).features) == "64"
