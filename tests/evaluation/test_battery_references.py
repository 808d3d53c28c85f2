"""References of a battery: measured in one pass, written, read, and refused where they do not fit."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from features_of_tests import noise_levels
from tiny_battery import Small, tiny_battery

from pmf_lightning.encoders.battery.reference_files import PUBLISHED, read_references
from pmf_lightning.evaluation.battery.references import ReferenceSettings, write_references
from pmf_lightning.objectives.discrepancies.mmd import MMDReference
from pmf_lightning.utils.errors import UserError

IMAGES, LABELS = noise_levels("references", 70), torch.arange(70) % 4
WIDTHS = {"pixels": 4, "mixed": 6, "other": 5}
ABOUT = {"data": "noise", "data_fingerprint": "f00d", "resolution": 8, "channels": 3, "classes": 4}


def written(out, battery=None, **settings):
    battery = battery or tiny_battery()
    out.mkdir(exist_ok=True)

    def images(first, end):
        return IMAGES[first:end], LABELS[first:end]

    return write_references(battery, images, 70, ReferenceSettings(**settings), 32, torch.device("cpu"), ABOUT, out)


def read(path, needs=("moments",), members=None, resolution=8):
    return read_references(path, members or dict(tiny_battery().members), resolution, needs)


def test_one_pass_writes_moments_banks_and_nystrom_references(tmp_path):
    battery = tiny_battery()
    index = written(tmp_path / "stats", battery, nystrom=12, bank=20)
    assert {member.calls for member in battery.members.values()} == {1 + 3}, "a blank image; 70 in batches of 32"
    assert json.loads((tmp_path / "stats" / "reference.json").read_text()) == index
    assert (index["n"], index["data_fingerprint"], index["resolution"]) == (70, "f00d", 8)
    assert index["encoders"]["mixed"] == {
        "fingerprint": "small 4 6",
        "width": 6,
        "holds": ["moments", "nystrom", "rows"],
    }
    assert sorted(path.name for path in (tmp_path / "stats").iterdir()) == sorted(
        ["reference.json", *(f"{name}{end}.npz" for name in WIDTHS for end in ("", "_bank", "_nystrom"))]
    )
    features = battery.encode(IMAGES.float() / 127.5 - 1)
    for name, real in read(tmp_path / "stats", ("moments", "rows", "nystrom")).items():
        wide = features[name].double()
        torch.testing.assert_close(real.mu, wide.mean(0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(real.sigma, torch.cov(wide.T), rtol=1e-5, atol=1e-8)
        same = (real.rows[:, None] - features[name]).abs().sum(2).argmin(1)
        torch.testing.assert_close(real.rows, features[name][same])
        assert torch.equal(real.labels, LABELS[same])
        assert len(same.unique()) == 20
        fitted = MMDReference.fit(features[name], 12)
        assert real.nystrom.bandwidth == pytest.approx(fitted.bandwidth, rel=1e-5)
        torch.testing.assert_close(real.nystrom.landmarks, fitted.landmarks, rtol=1e-4, atol=1e-5)
        assert real.count == 70


def test_a_folder_written_again_forgets_what_it_held(tmp_path):
    written(tmp_path, bank=20)
    written(tmp_path)
    with pytest.raises(UserError, match=r"no rows of features of pixels, needed here; .*make_stats .* bank=16384"):
        read(tmp_path, ("moments", "rows"))
    with pytest.raises(UserError, match=r"no Nystrom reference of pixels, needed here; make it with .* nystrom=4096"):
        read(tmp_path, ("nystrom",))


@pytest.fixture(scope="module")
def published():
    """FD-loss's files, as {name: arrays}, for the encoders of the test."""
    rows = torch.rand(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    moments = {"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)}
    other = {"avg_mu": 2 * rows.mean(0), "avg_sigma": 4 * np.cov(rows, rowvar=False)}
    return {f"{PUBLISHED['inception']}.npz": moments, f"{PUBLISHED['mae']}.npz": moments | other}


class Patches(Small):
    """Pools patch tokens."""

    pool = "patches"


def test_published_files_and_the_released_pickle_are_read_alike(tmp_path, published):
    for name, arrays in published.items():
        np.savez(tmp_path / name, **arrays)
    (tmp_path / "paper_ref_stats.pkl").write_bytes(pickle.dumps(published))
    bare = {name.removesuffix(".npz"): arrays for name, arrays in published.items()}
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(bare, protocol=2))
    members = {"inception": Small(2), "mae": Small(2), "mae_patches": Patches(2)}
    for path in (tmp_path, tmp_path / "paper_ref_stats.pkl", tmp_path / "bare.pkl"):
        for side in (256, 512):
            found = read(path, members=members, resolution=side)
        mu = torch.from_numpy(published[f"{PUBLISHED['mae']}.npz"]["mu"])
        assert torch.equal(found["mae"].mu, mu)
        assert torch.equal(found["inception"].mu, mu)
        assert torch.equal(found["mae_patches"].mu, 2 * mu), "the mean of the patch tokens"
        assert found["mae"].count == 1_281_167
        with pytest.raises(UserError, match=r"no reference for the encoder clip \(there are: inception, mae, mae_pat"):
            read(path, members={"clip": Small(2)}, resolution=256)
        with pytest.raises(UserError, match="are of images of 256 pixels, these have 64"):
            read(path, members=members, resolution=64)


class Harm:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, published):
    path, victim = tmp_path / "paper_ref_stats.pkl", tmp_path / "victim"
    path.write_bytes(pickle.dumps(published | {"more": Harm(victim)}))
    with pytest.raises(UserError, match=r"cannot be read as a pickle of arrays \(.*io.open, which does not belong"):
        read(path, members={"inception": Small(2)}, resolution=256)
    assert not victim.exists()
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match=r"holds a list, not arrays by file name"):
        read(path, members={"inception": Small(2)}, resolution=256)


def _change(folder: Path, name, **changes):
    with np.load(folder / name) as stored:
        arrays = dict(stored)
    np.savez(folder / name, **{key: value for key, value in (arrays | changes).items() if value is not None})


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    written(tmp_path, nystrom=8, bank=9)
    with pytest.raises(UserError, match=r"reference=.*nowhere: no such folder or file; make one with make_stats"):
        read(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"no reference for the encoder lite0 \(there are: mixed, other, pixels\); make"
    ):
        read(tmp_path, members={"lite0": Small(2)})
    with pytest.raises(UserError, match=r"mixed: made with the features small 4 6, the encoder is small 4 7; choose"):
        read(tmp_path, members={"mixed": Small(4, 7)})
    with pytest.raises(UserError, match=r"images of 8 pixels, these have 32; make them again with data.resolution=32"):
        read(tmp_path, resolution=32)
    wide = Small(2)
    wide.width = 9
    with pytest.raises(UserError, match="4 features of pixels, the encoder makes 9"):
        read(tmp_path, members={"pixels": wide})
    (tmp_path / "other.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"other.npz cannot be read as .npz: it is not one"):
        read(tmp_path, members={"other": Small(4, 5)})
    (tmp_path / "other.npz").unlink()
    with pytest.raises(UserError, match=r"other.npz is missing; make it again"):
        read(tmp_path, members={"other": Small(4, 5)})
    for name, changes, message in (
        ("pixels.npz", {"sigma": None}, "pixels.npz holds mu, not sigma"),
        ("pixels.npz", {"sigma": -np.eye(4)}, "pixels.npz: its covariance has no positive trace"),
        ("mixed_nystrom.npz", {"alpha": np.full(8, np.nan)}, "mixed_nystrom.npz is no Nystrom reference .numbers that"),
        (
            "mixed_bank.npz",
            {"labels": np.zeros(3, int)},
            "mixed_bank.npz holds no rows of finite features with a label",
        ),
    ):
        written(tmp_path, nystrom=8, bank=9)
        _change(tmp_path, name, **changes)
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    (tmp_path / "reference.json").write_text('{"format": "another"}')
    with pytest.raises(UserError, match=r"reference.json cannot be read .ValueError: format 'another'.; make it again"):
        read(tmp_path)
    for settings, message in (({"nystrom": 71}, "nystrom=71: there are 70 images"), ({"bank": 99}, "bank=99: there")):
        with pytest.raises(UserError, match=message):
            written(tmp_path, **settings)
