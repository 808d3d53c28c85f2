"""Sizes are compared before memory is taken: absurd ones are refused in one line, and nothing in a file is run."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from spoiling import bounded

from pmf_lightning import UserError
from pmf_lightning.data.shards.writing.inputs import SourceImage
from pmf_lightning.evaluation.image_files import open_images
from pmf_lightning.evaluation.references import load_reference
from pmf_lightning.utils.bounded_files import open_npz, open_tar, read_json, read_rows, read_yaml
from pmf_lightning.utils.tensor_files import load_tensors

BIG = 10**12


def npy(shape, content=b"", descr="<f8"):
    said = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said + content


def archive(path, compressed=True, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def refused(work, words, error=ValueError):
    with bounded(), pytest.raises(error, match=words) as refusal:
        work()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_of_a_million_million_numbers(compressed, tmp_path):
    path = archive(tmp_path / "a.npz", compressed, mu=npy((BIG,)), sigma=npy((BIG, 2), bytes(100)), arr_0=npy((BIG,)))
    refused(lambda: load_reference(path, "inception"), r"mu of float64 \[1000000000000\] does not fit", UserError)
    refused(lambda: open_images(path, 3), r"arr_0 of float64 \[1000000000000\] does not fit", UserError)
    with open_npz(path) as arrays:
        refused(lambda: arrays.read("sigma", 2**40), "does not fit its")


def test_a_bomb_of_zeros(tmp_path):
    """More than half a gigabyte in half a megabyte, as large as its header says."""
    path, piece = tmp_path / "a.npz", bytes(2**24)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("mu.npy", "w", force_zip64=True) as member:
            member.write(npy((2**21 * 40,)))
            for _ in range(40):
                member.write(piece)
        file.writestr("sigma.npy", npy((2, 2), bytes(32)))
    refused(lambda: load_reference(path, "inception"), "has more than 536,870,912 bytes", UserError)


def test_a_zip_that_lies_about_a_size(tmp_path):
    content = archive(tmp_path / "a.npz", False, mu=npy((3,), bytes(24)), sigma=npy((3, 3), bytes(72))).read_bytes()
    size = len(npy((3,), bytes(24))).to_bytes(4, "little")
    (tmp_path / "b.npz").write_bytes(content.replace(size + size, size + (2**32 - 2).to_bytes(4, "little")))
    refused(lambda: load_reference(tmp_path / "b.npz", "inception"), "claims to have 4,294,967,294 bytes", UserError)


@pytest.mark.parametrize("descr", ["|O", "<U1000000000", [("a", "|O")]])
def test_arrays_of_objects_and_of_endless_texts(descr, tmp_path):
    path = archive(tmp_path / "a.npz", False, mu=npy((3,), bytes(24), descr), sigma=npy((3, 3), bytes(72)))
    refused(lambda: load_reference(path, "inception"), "Python objects|does not fit|cannot be read", UserError)


def test_some_rows_are_read_of_many(tmp_path):
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.savez(tmp_path / "a.npz", images=images, turned=np.asfortranarray(images))
    with open_npz(tmp_path / "a.npz") as arrays:
        assert (arrays.read("images", 8, rows=2) == images[:2]).all()
        assert (arrays.read("images", 100) == images).all()
        assert (arrays.read("turned", 100) == images).all()
        refused(lambda: arrays.read("images", 7, rows=2), "has more than 7 bytes")
        refused(lambda: arrays.read("nothing", 7), "holds no nothing")


def test_pickles_that_take_memory(tmp_path):
    """A place in a list of four thousand million, an array that begins large, bytes that are not there."""
    bad = {
        "memo": b"\x80\x04N" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff.",
        "bytes": b"\x80\x05" + pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little") + b".",
        "array": b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntU\x01btR.",
        "object": b"cnumpy\ndtype\n(U\x01OtR.",
        "call": b"cnumpy\nndarray\n(I1000000000000\ntR.",
    }
    for name, content in bad.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
        refused(
            lambda name=name: load_reference(tmp_path / f"{name}.pkl", "inception"), "cannot be read|hold", UserError
        )


def test_weights_that_take_more_than_the_file_has(tmp_path):
    torch.save({"a": torch.zeros(1).expand(BIG)}, tmp_path / "a.pt")
    refused(lambda: load_tensors(tmp_path / "a.pt"), "is larger than what is stored of it")
    whole = torch.zeros(2**20)
    torch.save({str(i): whole for i in range(100)}, tmp_path / "b.pt")
    refused(lambda: load_tensors(tmp_path / "b.pt"), "its tensors take")
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "c.pt")
    with (
        zipfile.ZipFile(tmp_path / "c.pt") as old,
        zipfile.ZipFile(tmp_path / "d.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for mapped in (False, True):
        refused(lambda mapped=mapped: load_tensors(tmp_path / "d.pt", mapped), "torch did not write it")
    assert load_tensors(tmp_path / "c.pt", mmap=True)["a"].sum() == 0


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_of_tars_that_have_no_end(kind, tmp_path):
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, BIG
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with bounded(), pytest.raises(tarfile.TarError), open_tar(tmp_path / "a.tar") as tar:
        list(tar)


def test_a_member_of_negative_size_ends(tmp_path):
    """Python's own tarfile reads it for ever, before 3.11.14."""
    member = tarfile.TarInfo("a")
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136] = (2**96 - 1024).to_bytes(12, "big")
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(1024))
    with bounded(), pytest.raises(tarfile.TarError), open_tar(tmp_path / "a.tar") as tar:
        list(tar)


def test_a_piece_longer_than_its_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(100))
    refused(SourceImage("a", 0, str(tmp_path / "a.tar"), 50, BIG).read, "the tar ends after 50 of", OSError)


def test_pictures_of_a_million_million_pixels(tmp_path):
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = (10**6).to_bytes(4, "big") * 2
    (tmp_path / "a.png").write_bytes(bytes(content))
    refused(lambda: open_images(tmp_path, 3), "cannot be read as an image", UserError)


def test_text_that_is_too_deep_or_too_long(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    refused(lambda: read_json(path), "nested too deeply")
    path.write_text(json.dumps(["x" * 100]))
    refused(lambda: read_json(path, most=50), "longer than 50 bytes")
    path.write_bytes(b"\xff")
    refused(lambda: read_json(path), "utf-8")
    path.write_text('{"a": 1}\n[]\n{"b"\n\n{"c": 2}\n' + "[" * 100_000 + "\n")
    assert read_rows(path) == [{"a": 1}, {"c": 2}]


def test_aliases_without_end(tmp_path):
    import yaml

    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    refused(lambda: read_yaml(tmp_path / "a.yaml", yaml.safe_load), "too long, or nested too deeply")
    (tmp_path / "a.yaml").write_text("a: &a [1]\nb: *a\n")
    assert read_yaml(tmp_path / "a.yaml", yaml.safe_load) == {"a": [1], "b": [1]}
