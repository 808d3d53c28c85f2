"""Files of flax.serialization, written here in that format, and the weights of an MAE in them."""

import json
import pickle
import sys

import msgpack
import numpy as np
import pytest
import torch
from common import normal
from conftest import _load
from flax_files import chunked, mae_in_flax, nested, packed, write

from pmf_lightning import UserError
from pmf_lightning.models.mae import MAE, MAEEncoder
from pmf_lightning.models.vit import init_weights
from pmf_lightning.utils import rng
from pmf_lightning.weights.flax import read_msgpack
from pmf_lightning.weights.mae import load_official_mae, mae_tensors, official_mae_name, official_mae_sizes

SIZES = {"resolution": 16, "channels": 3, "patch": 2, "base_channels": 32, "blocks": (1, 2, 1, 1)}


def mae(name="a", **changes):
    network = MAE(**{**SIZES, "classes": 7, **changes})
    init_weights(network, lambda weight: rng.generator("tests", name, weight))
    with torch.no_grad():
        for key, weight in network.named_parameters():
            weight.add_(0.1 * normal(name, key, shape=tuple(weight.shape), dtype=torch.float32))
    return network


@pytest.fixture(scope="module")
def network():
    return mae()


@pytest.fixture(scope="module")
def official(network):
    return mae_in_flax(network)


@pytest.fixture(scope="module")
def tensors(official):
    return {name: torch.from_numpy(value.copy()) for name, value in official.items()}


@pytest.fixture(scope="module")
def file(official, tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / "ema_params.msgpack"
    write(path, nested(official))
    return path


def test_reads_arrays_scalars_and_pieces_in_their_dtype_and_layout(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    half = torch.tensor([1.5, -2.25, 3e38], dtype=torch.bfloat16)
    tree = {
        "a": {"rows": rows, "deep": {"columns": np.asfortranarray(rows[0]).astype(np.float64)}},
        "half": packed(half),
        "step": np.int64(7),
        "plain": 3,
        "none": np.zeros((0, 5), np.float32),
        "big": chunked(rows, 5),
    }
    write(tmp_path / "x.msgpack", tree)
    found = read_msgpack(tmp_path / "x.msgpack")
    assert list(found) == ["a/rows", "a/deep/columns", "half", "step", "plain", "none", "big"]
    assert found["a/rows"].dtype == torch.float32
    assert np.array_equal(found["a/rows"].numpy(), rows)
    assert found["a/deep/columns"].dtype == torch.float64
    assert np.array_equal(found["a/deep/columns"].numpy(), rows[0])
    assert found["half"].dtype == torch.bfloat16
    assert torch.equal(found["half"], half)
    assert (found["step"].item(), found["plain"].item(), found["none"].shape) == (7, 3, (0, 5))
    assert np.array_equal(found["big"].numpy(), rows)
    found["a/rows"][0, 0, 0] = 5  # memory of its own


def array(shape, dtype, data):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data), use_bin_type=True))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": array((2, 2), "float32", b"123")}}, r"a/b has 3 bytes, its shape \(2, 2\) of float32 needs 16"),
        ({"a": {"b": array((-1, -2), "float32", b"12345678")}}, "a/b has 8 bytes"),
        ({"b": array((1,), "object", b"1")}, "b has the dtype object; known: bfloat16, bool, float16"),
        ({"b": msgpack.ExtType(1, b"\x01")}, "b is not a flax array"),
        ({"a": {"b": [1, 2]}}, "a/b is a list, not an array"),
        ({"a": "word"}, "a is a str, not an array"),
        ({"a": msgpack.ExtType(9, b"")}, "extension type 9"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}}}, "a cannot be assembled from its chunks"),
        ([1], "holds a list, not a dictionary"),
    ],
)
def test_entries_that_are_no_arrays_are_named(tree, message, tmp_path):
    (tmp_path / "x.msgpack").write_bytes(msgpack.packb(tree))
    with pytest.raises(UserError, match=message):
        read_msgpack(tmp_path / "x.msgpack")


def test_pieces_that_do_not_fill_the_shape_are_refused(tmp_path):
    tree = {"w": chunked(np.arange(6, dtype=np.float32), 4)}
    tree["w"]["shape"] = {"0": 7}
    write(tmp_path / "x.msgpack", tree)
    with pytest.raises(UserError, match="w cannot be assembled"):
        read_msgpack(tmp_path / "x.msgpack")


class Bomb:
    def __reduce__(self):
        return print, ("this code ran",)


def test_foreign_and_damaged_files_are_refused_and_nothing_runs(file, tmp_path, capsys):
    path = tmp_path / "x.msgpack"
    for content in (pickle.dumps(Bomb()), b"", file.read_bytes()[:-20], file.read_bytes() + b"more"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}: "):
            read_msgpack(path)
    assert "this code ran" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no such file"):
        read_msgpack(tmp_path / "y.msgpack")


def test_without_the_package_the_remedy_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(UserError, match=r"pip install 'pmf_lightning\[flax-files\]'"):
        read_msgpack(file)


def test_an_mae_comes_back_from_its_file(network, file):
    loaded = load_official_mae(file, mae("another"))
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    image = normal("image", shape=(2, 3, 16, 16), dtype=torch.float32)
    for name, value in network(image).items():
        assert torch.equal(loaded(image)[name], value)


def test_the_encoder_alone_takes_its_part(network, file):
    with torch.device("meta"):
        encoder = MAEEncoder(**SIZES)
    load_official_mae(file.parent, encoder)
    assert all(torch.equal(value, network.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_names_are_those_of_the_official_tree():
    golden = {n.removeprefix("p1/w/") for n in _load("drift_features.npz") if n.startswith("p1/w/")}
    with torch.device("meta"):
        encoder = MAEEncoder(resolution=32, channels=3, patch=1, base_channels=8, blocks=(2, 2, 2, 2))
    assert {official_mae_name(f"encoder.{n}", value.ndim) for n, value in encoder.state_dict().items()} == golden
    with pytest.raises(ValueError, match=r"trunk\.0\.weight is not a weight of an MAE"):
        official_mae_name("trunk.0.weight", 2)


def test_half_precision_and_an_outer_params_are_taken(network, tensors):
    given = {f"params/{name}": value.bfloat16() for name, value in tensors.items()}
    ours = mae_tensors(given, network)
    assert ours.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], value.bfloat16().float())


def test_missing_unknown_and_other_sizes_are_named(network, tensors):
    less = {name: value for name, value in tensors.items() if name != "decoder/up21/proj/gn/scale"}
    with pytest.raises(UserError, match=r"some\.msgpack: it lacks decoder/up21/proj/gn/scale; is it an MAE"):
        mae_tensors(less, network, "some.msgpack")
    with pytest.raises(UserError, match="has the unknown arrays encoder/stages_9/layers_0/conv1/kernel"):
        mae_tensors({**tensors, "encoder/stages_9/layers_0/conv1/kernel": torch.zeros(1)}, network)
    with pytest.raises(UserError, match=r"it lacks decoder/bridge/conv/kernel, .* and 82 more"):
        mae_tensors({"fc/kernel": torch.zeros(1)}, network)
    with pytest.raises(UserError, match=r"encoder/conv1/kernel is \(32, 12, 3, 3\), not \(32, 3, 3, 3\)"):
        mae_tensors(tensors, mae(patch=1))
    with pytest.raises(UserError, match=r"fc/kernel is \(7, 256\), not \(8, 256\)"):
        mae_tensors(tensors, mae(classes=8))
    with pytest.raises(UserError, match="has the unknown arrays encoder/stages_1/layers_1/"):
        mae_tensors(tensors, mae(blocks=(1, 1, 1, 1)))


def test_sizes_come_from_the_metadata(file, network, tmp_path):
    config = {"base_channels": 32, "patch_size": 2, "layers": [1, 2, 1, 1], "in_channels": 3, "input_patch_size": 2}
    folder = tmp_path / "params_ema"
    folder.mkdir()
    (folder / "ema_params.msgpack").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"no metadata\.json next to the weights"):
        official_mae_sizes(tmp_path)
    (folder / "metadata.json").write_text(json.dumps({"model_config": config}))
    sizes = official_mae_sizes(tmp_path)
    assert sizes == {
        **{"channels": 3, "patch": 2, "base_channels": 32, "blocks": [1, 2, 1, 1], "classes": 1000, "cell": 2}
    }
    assert official_mae_sizes(folder / "ema_params.msgpack") == sizes
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match="no model_config of an MAE"):
        official_mae_sizes(tmp_path)
    with pytest.raises(UserError, match=r"holds no ema_params\.msgpack"):
        official_mae_sizes(folder.parent / "..")
