"""Whatever a file holds, reading it ends well or in one line: no traceback, no hang, no flood of memory, no litter."""

import io
import json
import pickle
import shutil
import tarfile
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import stored
import torch
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from spoiling import ODD, fuzz, mutated, only_user_errors, spoilt
from tiny_shards import numbered, write_shards

from pmf_lightning import compose, load_checkpoint
from pmf_lightning.data.images.files import FolderFiles
from pmf_lightning.data.shards.manifest import read_manifest
from pmf_lightning.data.shards.payloads import decode, encode
from pmf_lightning.data.shards.source import Shards
from pmf_lightning.data.shards.writing.input_tars import tar_inputs
from pmf_lightning.data.shards.writing.inputs import SourceImage, Unreadable
from pmf_lightning.data.shards.writing.pixels import read_piece
from pmf_lightning.data.shards.writing.progress import Finished, making, note, read_note
from pmf_lightning.data.shards.writing.recipe import Recipe
from pmf_lightning.data.shards.writing.verify import check_shard
from pmf_lightning.data.sources.decode_cache import DecodeJob, open_decoded
from pmf_lightning.encoders.drifting.build import run_encoder
from pmf_lightning.encoders.trained_cache import load_or_train
from pmf_lightning.evaluation.guidance_search.records import Record, Records
from pmf_lightning.evaluation.guidance_search.space import SamplingSetting
from pmf_lightning.evaluation.image_files import open_images
from pmf_lightning.evaluation.references import load_reference
from pmf_lightning.reports.runs import read_runs
from pmf_lightning.sweeps import sweep_file
from pmf_lightning.training.resume import finished
from pmf_lightning.training.settings import RunRequest
from pmf_lightning.utils.errors import UserError
from pmf_lightning.weights import read_official
from pmf_lightning.weights.flax import read_msgpack

FEW = 6  # examples of each in the fast tier


class Fuzzed(NamedTuple):
    """A kind of input: its values, and what is done with one in an empty folder; ``examples`` in the slow tier."""

    values: st.SearchStrategy
    use: object
    examples: int


def bytes_of(write):
    """What ``write(stream)`` writes."""
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def into(name, content, use):
    """A use of a folder that holds one file of these contents."""

    def run(folder):
        (folder / name).write_bytes(content)
        return use(folder / name)

    return run


def of_bytes(name, content, use, examples=150):
    """Fuzz the bytes of one file."""
    return Fuzzed(spoilt(content), lambda folder, value: into(name, value, use)(folder), examples)


def of_json(name, tree, use, examples=100):
    """Fuzz a JSON file: its bytes, and the values in it."""
    texts = mutated(tree).map(lambda value: json.dumps(value).encode())
    deep = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b"\xff\xfe", b"nul", b"[NaN]", b""])
    values = st.one_of(texts, texts, texts, spoilt(json.dumps(tree).encode()), deep)
    return Fuzzed(values, lambda folder, value: into(name, value, use)(folder), examples)


# Statistics and image sets


def moments(width=4):
    return {"mu": np.arange(width) / 7, "sigma": np.eye(width), "about": np.array(json.dumps({"n": 10}))}


def npy(shape, descr="<f8", fortran=False, content=b"", version=1):
    """A .npy whose header says what it likes."""
    said = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode()
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(said).to_bytes(width, "little") + said + content


def zipped(members, compressed=False):
    import zipfile

    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


SHAPES = [(10**12,), (10**6, 10**6), (), (0,), (4,), (4, 4), (-1,), (2**63,), (1,) * 40, (3, 0), "x", None, (1.5,)]
DESCRS = ["<f8", "<f4", "|O", "<U9", "|u1", "<c16", "|V10", [("a", "<f8")], "<m8", "x", 3, "|S1000000000"]
HEADERS = st.builds(
    lambda shapes, descrs, content, compressed, fortran, names: zipped(
        {f"{n}.npy": npy(s, d, fortran, content) for n, s, d in zip(names, shapes, descrs, strict=True)}, compressed
    ),
    *(st.lists(st.sampled_from(x), min_size=3, max_size=3) for x in (SHAPES, DESCRS)),
    st.sampled_from([b"", bytes(32), bytes(128), bytes(5_000_000)]),
    *(st.booleans(), st.booleans()),
    st.sampled_from([("mu", "sigma", "about"), ("ref_mu", "ref_sigma", "arr_0"), ("arr_0", "mu", "features")]),
)


def reference(path):
    return load_reference(path, "inception", 5)


def all_images(path):
    images = open_images(path, 3)
    return images(0, min(len(images), 5))


# Checkpoints and weights


CHECKPOINT = {name: part for name, part in stored.checkpoint().items()}


def write_spoilt(folder, value, use=load_checkpoint):
    """Write a checkpoint of which some parts are others."""
    tensors = {**CHECKPOINT["state_dict"]}
    value = dict(value)
    for odd in value.pop("odd", []):
        match odd:
            case ("missing", number):
                tensors.pop(sorted(tensors)[number % len(tensors)], None)
            case ("other", number, other):
                tensors[sorted(tensors)[number % len(tensors)]] = other
    torch.save({"state_dict": tensors, "ema": CHECKPOINT["ema"], **value}, folder / "a.ckpt")
    return use(folder / "a.ckpt")


TENSORS = [
    *(torch.zeros(0), torch.zeros(1).expand(10**6, 10**6), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3)),
    *(torch.zeros(2, dtype=torch.complex64), torch.zeros(1, device="meta"), torch.full((4,), torch.nan)),
    *(1, None, "x", [1], {}),
]
SPOILT_TENSORS = st.lists(
    st.one_of(
        st.tuples(st.just("missing"), st.integers(0, 100)),
        st.tuples(st.just("other"), st.integers(0, 100), st.sampled_from(TENSORS)),
    ),
    max_size=2,
)
BUILT = {part: stored.config()[part] for part in ("backbone", "objective", "optimizer", "sampling", "schedule", "ema")}
CONFIGS = st.one_of(
    mutated(stored.config()),
    mutated(BUILT).map(lambda parts: {**stored.config(), **parts}),
    mutated(stored.config()["backbone"]).map(lambda part: {**stored.config(), "backbone": part}),
    mutated(stored.config()["objective"]).map(lambda part: {**stored.config(), "objective": part}),
)
CHECKPOINTS = st.one_of(
    st.fixed_dictionaries({"config": CONFIGS}),
    st.fixed_dictionaries({"config": CONFIGS}),
    st.fixed_dictionaries({"config": st.just(stored.config()), "odd": SPOILT_TENSORS}),
    st.fixed_dictionaries(
        {
            "config": st.just(stored.config()),
            "ema": st.sampled_from([*ODD, {"2k": {}}, {"2k": {"x": torch.ones(1)}}, {"2k": None}, {"1k": 3}]),
        }
    ),
    st.fixed_dictionaries({"config": st.sampled_from(ODD), "state_dict": st.sampled_from([*ODD, *TENSORS])}),
)


def folder_of_weights(folder, value):
    stored.write_folder(folder / "weights")
    about = json.loads((folder / "weights" / "config.json").read_text())
    which, content = value
    if which == "config":
        (folder / "weights" / "config.json").write_text(json.dumps({**about, "config": content}))
    elif which == "about":
        (folder / "weights" / "config.json").write_text(json.dumps(content))
    else:
        (folder / "weights" / which).write_bytes(content)
    return load_checkpoint(folder / "weights")


def weights_files():
    """The two files of a folder of weights."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = stored.write_folder(Path(folder) / "weights")
        return {name: (made / name).read_bytes() for name in ("config.json", "model.safetensors")}


FILES = weights_files()
FOLDERS = st.one_of(
    st.tuples(st.just("config"), CONFIGS),
    st.tuples(st.just("about"), mutated({**json.loads(FILES["config.json"]), "config": {"seed": 1}})),
    st.tuples(st.just("config.json"), spoilt(FILES["config.json"])),
    st.tuples(st.just("model.safetensors"), spoilt(FILES["model.safetensors"])),
    st.tuples(st.just("model.safetensors"), spoilt(FILES["model.safetensors"][:2000])),
)
ENCODER = OmegaConf.to_container(compose(["model=mae_tiny"]), resolve=True)


def encoder(path):
    return run_encoder(path)


def small_network(path):
    return load_or_train(path, lambda: torch.nn.Linear(2, 2), lambda: torch.nn.Linear(2, 2), "a test")


KEPT = bytes_of(lambda s: torch.save({"weights": torch.nn.Linear(2, 2).state_dict(), "checksum": "0" * 32}, s))
OFFICIAL = bytes_of(lambda s: torch.save({"net.a": torch.zeros(3, 2), "net.b": torch.ones(2)}, s))
OLDER = bytes_of(lambda s: torch.save({"net.a": torch.zeros(3)}, s, _use_new_zipfile_serialization=False))


def flax_bytes():
    """A file of flax weights, and what says too much of itself."""
    import msgpack

    def array(shape, dtype, data):
        return msgpack.ExtType(1, msgpack.packb((shape, dtype, data), use_bin_type=True))

    tree = {"a": {"b": array((2, 2), "float32", bytes(16)), "c": 1.5}, "d": array((3,), "int8", bytes(3))}
    return msgpack.packb(tree, use_bin_type=True)


FLAX = st.one_of(
    spoilt(flax_bytes()),
    st.integers(1, 600).map(lambda n: b"\x81\xa1a" * n + b"\xdd\xff\xff\xff\xff"),
    st.integers(1, 600).map(lambda n: b"\x81\xa1a" + b"\xdd\x00\x00\x27\x10" * n + bytes(10_000)),
    st.integers(1, 2000).map(lambda n: b"\x81\xa1a" * n + b"\xc0"),
    st.sampled_from([b"\x81\xa1a\xcf" + b"\xff" * 8, b"", b"\x80", b"\x81\xc0\xc0", b"\xc1"]),
)


# Shards


def shard_files():
    import tempfile

    found = {}
    for payload in ("npy", "png", "webp", "jpg"):
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), numbered(6, (3, 8, 8)), [0, 1, 0, 1, 0, 1], 3, payload)
            found[payload] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return found


SHARDS = shard_files()


def read_shards(folder, value):
    payload, changed = value
    for name, content in {**SHARDS[payload], **changed}.items():
        (folder / name).write_bytes(content)
    source = only_user_errors(lambda: Shards("shards", str(folder), 8, 3, 2, 0.2, 0.5))
    only_user_errors(source.check)
    only_user_errors(source.fingerprint)
    images = only_user_errors(source.train)
    if images is not None:
        only_user_errors(lambda: images.batch(range(len(images))))
    manifest = only_user_errors(lambda: read_manifest(folder))
    for entry in manifest.shards if manifest is not None else ():
        only_user_errors(lambda entry=entry: check_shard(entry, lambda: None, folder, manifest))


@st.composite
def spoilt_shards(draw):
    payload = draw(st.sampled_from(list(SHARDS)))
    name = draw(st.sampled_from(sorted(SHARDS[payload])))
    content = SHARDS[payload][name]
    if name.endswith(".json") and draw(st.booleans()):
        return payload, {name: json.dumps(draw(mutated(json.loads(content)))).encode()}
    if name.endswith(".npz") and draw(st.booleans()):
        columns = dict(np.load(io.BytesIO(content)))
        column = draw(st.sampled_from(sorted(columns)))
        columns[column] = np.array(draw(st.sampled_from([[2**62] * 3, [0] * 3, [-1] * 3, ["x"] * 3, [1.5] * 3, 3, []])))
        return payload, {name: bytes_of(lambda stream: np.savez(stream, **columns))}
    return payload, {name: draw(spoilt(content))}


def input_tar():
    picture = bytes_of(lambda stream: Image.new("RGB", (5, 5), (9, 8, 7)).save(stream, "PNG"))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in {"a.png": picture, "a.cls": b"3", "n" * 120 + ".png": picture, "b.cls": b"1"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def absurd_tar(kind, size):
    """A tar whose first header says that so many bytes follow."""
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


KINDS = [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
TARS = st.one_of(
    spoilt(input_tar()),
    spoilt(input_tar()),
    st.builds(absurd_tar, st.sampled_from([*KINDS, b"S", b"x", b"9"]), st.sampled_from([10**12, 10**10, 2**40, 600])),
)
RECIPE = Recipe("pixels", "png", None, 4, 3, "none", "white", 10, None, 2, "x")


def read_tar(path):
    inputs = tar_inputs([path], None, None, 1, lambda done: None, path.with_name("unpacked"))
    return [read_piece(inputs.piece(row), RECIPE) for row in range(min(len(inputs), 20))]


PICTURES = {
    kind: bytes_of(lambda stream, kind=kind: Image.new("RGB", (9, 7), (200, 10, 30)).save(stream, kind))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
}


def piece(path):
    found = read_piece(SourceImage("a", 0, str(path)), RECIPE)
    assert isinstance(found, str) or found.levels.shape == (3, 4, 4)


def payload(folder, value):
    kind, content = value
    with suppress(ValueError):
        decode(content, kind, 3)


PAYLOADS = st.sampled_from(["npy", "png", "webp", "jpg"]).flatmap(
    lambda kind: st.tuples(st.just(kind), spoilt(encode(numbered(1, (3, 4, 4))[0], kind, 90)))
)


def decoded_files():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (5, 5)).save(Path(folder) / "a.png")
        open_decoded(Path(folder) / "cache", wanted(folder), fail=True)
        return {path.name: path.read_bytes() for path in (Path(folder) / "cache").iterdir()}


def wanted(root):
    one = torch.zeros(1, dtype=torch.int64)
    return DecodeJob(FolderFiles(Path(root)), ["a.png"], one, torch.zeros(1, dtype=torch.float64), 4, 3, "white")


def read_decoded(folder, value):
    name, content = value
    (folder / "cache").mkdir()
    for file, right in {**DECODED, name: content}.items():
        (folder / "cache" / file).write_bytes(right)
    found = open_decoded(folder / "cache", wanted(folder), fail=True)
    return found.images[:].sum()


# Notes, runs and sweeps

RUN = {
    "config.yaml": {"name": "a", "seed": 1, "images": 10, "data": {"name": "d"}, "study": {"name": "s", "arm": "x"}},
    "summary.json": {"fd": 1.5, "stopped_early": False, "metric": "fd", "by_steps": {"4": {"fd": 2}}},
    "run.json": {"started": "2026-11-01", "versions": {"torch": "2"}},
    "sweep.json": {"format": 1, "title": "t", "arms": [{"arm": "a", "seed": 1, "run_dir": ".", "state": "finished"}]},
    "metrics.jsonl": {"images": 3, "loss_u": 0.5, "step": 1},
    "runs.json": {
        "format": 1,
        "common": {"config": {"seed": 1}},
        "runs": [{"name": "a", "config": {}, "overrides": ["a=1"], "samples": [0, 0, 9, 9], "log": {"images": [3]}}],
    },
}


def runs(folder, value):
    name, content = value
    for file, tree in RUN.items():
        (folder / file).write_text(json.dumps(tree))
    (folder / name).write_bytes(content)
    for run in only_user_errors(lambda: read_runs(folder)) or ():
        only_user_errors(lambda run=run: (run.seed, run.state, run.reason, run.started, run.log, run.number("fd")))
    arms = [sweep_file.SweepRun("a", 1, folder), sweep_file.SweepRun("b", 2, None)]
    only_user_errors(lambda: [(arm.state, arm.images_per_second) for arm in arms])
    only_user_errors(lambda: sweep_file.write(folder, arms, {"title": "t"}))
    request = RunRequest(folder, "auto", folder.parent, steps=2, config={"seed": 1})
    only_user_errors(lambda: finished(request))


BOMB = "a: &a [1,1]\n" + "".join(
    f"{name}: &{name} [*{last},*{last},*{last},*{last}]\n" for last, name in pairwise("abcdefghijklm")
)
RUNS = st.sampled_from(sorted(RUN)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.one_of(
            mutated(RUN[name]).map(lambda tree: json.dumps(tree).encode()),
            spoilt(json.dumps(RUN[name]).encode()),
            st.sampled_from([BOMB.encode(), b"[" * 50_000, b"\xff", b"[]", b"null", b"a: !!python/object:os.x {}"]),
        ),
    )
)
POINT = Record(SamplingSetting("1k", 2, (0.0, 1.0), 1, "one_step"), {"n": 10}, {"fid": 2.0}, 1, 0.5).plain()


def points(path):
    return Records(path.parent).find(SamplingSetting("1k", 2, (0.0, 1.0), 1, "one_step"), {"n": 10})


def notes(folder, value):
    manifest = write_shards(folder, numbered(3, (3, 4, 4)), [0, 1, 0], 3)
    tar = folder / manifest.shards[0].file
    (folder / ".progress").mkdir()
    note(tar, Finished(manifest.shards[0], [Unreadable("a", "b", "c")], {"turned": 1}))
    which, content = value
    if which == "note":
        (folder / ".progress" / f"{tar.stem}.json").write_bytes(content)
        return read_note(tar)
    (folder / ".progress" / "recipe.json").write_bytes(content)
    with making(folder, RECIPE):
        return None


ENTRY = {"file": "a.tar", "count": 3, "bytes": 10, "digest": "0"}
FINISHED = {
    "entry": ENTRY,
    "unreadable": [{"key": "a", "reason": "b", "file": "c", "shard": "d"}],
    "done": {"turned": 1},
}
NOTES = st.one_of(
    st.tuples(st.just("note"), mutated(FINISHED).map(lambda tree: json.dumps(tree).encode())),
    st.tuples(st.just("note"), spoilt(json.dumps(FINISHED).encode())),
    st.tuples(st.just("recipe"), mutated(asdict(RECIPE)).map(lambda tree: json.dumps(tree).encode())),
    st.tuples(st.just("recipe"), spoilt(json.dumps(asdict(RECIPE)).encode())),
)
DECODED = decoded_files()
PICKLE = pickle.dumps({"fid": {"mu": np.arange(4) / 7, "sigma": np.eye(4)}, "about": {"n": 3}})
SAVED = bytes_of(lambda stream: torch.save(stored.checkpoint(), stream))
NPZ = bytes_of(lambda stream: np.savez(stream, **moments()))
IMAGES = bytes_of(lambda stream: np.savez(stream, arr_0=np.zeros((3, 4, 4, 3), np.uint8)))

FUZZED = {
    "statistics": of_bytes("a.npz", NPZ, reference),
    "headers of statistics": Fuzzed(HEADERS, lambda folder, value: into("a.npz", value, reference)(folder), 150),
    "headers of images": Fuzzed(HEADERS, lambda folder, value: into("a.npz", value, all_images)(folder), 60),
    "pickled statistics": of_bytes("a.pkl", PICKLE, reference),
    "images": of_bytes("a.npz", IMAGES, all_images, 100),
    "bytes of checkpoints": of_bytes("a.ckpt", SAVED, load_checkpoint, 100),
    "parts of checkpoints": Fuzzed(CHECKPOINTS, write_spoilt, 250),
    "folders of weights": Fuzzed(FOLDERS, folder_of_weights, 150),
    "encoders": Fuzzed(
        mutated(ENCODER).map(lambda config: {"config": config}),
        lambda folder, value: write_spoilt(folder, value, encoder),
        60,
    ),
    "cached networks": of_bytes("a.pt", KEPT, small_network, 60),
    "official weights": of_bytes("a.pt", OFFICIAL, read_official, 60),
    "older official weights": of_bytes("a.pt", OLDER, read_official, 60),
    "flax": Fuzzed(FLAX, lambda folder, value: into("a.msgpack", value, read_msgpack)(folder), 150),
    "shards": Fuzzed(spoilt_shards(), read_shards, 200),
    "tars": Fuzzed(TARS, lambda folder, value: into("a.tar", value, read_tar)(folder), 60),
    "pictures": Fuzzed(
        st.sampled_from(list(PICTURES)).flatmap(lambda kind: spoilt(PICTURES[kind])),
        lambda folder, value: into("a.png", value, piece)(folder),
        150,
    ),
    "payloads": Fuzzed(PAYLOADS, payload, 150),
    "decoded files": Fuzzed(
        st.sampled_from(sorted(DECODED)).flatmap(lambda name: st.tuples(st.just(name), spoilt(DECODED[name]))),
        read_decoded,
        100,
    ),
    "runs": Fuzzed(RUNS, runs, 200),
    "points of a search": of_json("a.json", POINT, points, 60),
    "notes of shards": Fuzzed(NOTES, notes, 100),
}


def fuzzed(name, tmp_path, examples):
    number = 0

    def check(value):
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        only_user_errors(lambda: FUZZED[name].use(folder, value))
        assert not [path for path in folder.rglob("*") if path.name.endswith((".partial", ".draft"))]
        shutil.rmtree(folder)

    fuzz(FUZZED[name].values, check, examples)


@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.filterwarnings("ignore")
def test_a_few_spoilt_inputs_are_one_line(name, tmp_path, capsys):
    fuzzed(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.filterwarnings("ignore")
def test_spoilt_inputs_are_one_line(name, tmp_path, capsys):
    fuzzed(name, tmp_path, FUZZED[name].examples)


def test_there_are_two_thousand():
    assert sum(case.examples for case in FUZZED.values()) >= 2000


def test_an_error_that_is_none_of_the_users_is_found(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fuzz(st.integers(0, 3), lambda value: only_user_errors(lambda: 1 / value), 20)
    with pytest.raises(AssertionError):
        only_user_errors(lambda: refuse("two\nlines"))
    assert only_user_errors(lambda: refuse("one line")) is None
    assert only_user_errors(lambda: 3) == 3


def refuse(words):
    raise UserError(words)
