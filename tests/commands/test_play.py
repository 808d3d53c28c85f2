"""What the command play refuses in one line, before PyTorch is imported and before a page is served."""

import importlib.util
import socket

import pytest
from omegaconf import OmegaConf

from pmf_lightning import UserError, compose, play
from pmf_lightning.config.command_line import readable


@pytest.fixture
def call(call_command):
    return lambda *arguments: call_command(play.main, *arguments)


def refused(call, *arguments):
    status, _, errors = call(*arguments)
    assert status == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in errors
    return line


def test_a_port_in_use_is_a_line(call):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(call, "ckpt=.", f"port={port}")
        assert f"port={port}: it cannot be opened" in line
        assert f"set port={port + 1}" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["ckpt is not set"]),
        (["ckpt=.", "host=203.0.113.7"], ["host=203.0.113.7", "127.0.0.1"]),
        (["ckpt=.", "device=toaster"], ["device=toaster", "auto"]),
        (["ckpt=.", "port=70000"], ["port=70000", "65,535"]),
        (["ckpt=[]"], ["ckpt", "is empty"]),
        (["ckpt=[3,[4]]"], ["ckpt="]),
    ],
    ids=" ".join,
)
def test_bad_input_is_a_line(call, arguments, words):
    line = refused(call, *arguments)
    for word in words:
        assert word in line


def test_a_missing_extra_is_a_line(call, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(play, "find_spec", lambda name: None if name == "gradio" else find(name))
    assert "pip install 'pmf_lightning[play]'" in refused(call, "ckpt=.")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a", "a"),
        ("2026_11", "2026_11"),
        ("runs/a=1, b", "runs/a=1, b"),
        ("[a,b]", ["a", "b"]),
        ("[runs/2026_11, it's,x=1]", ["runs/2026_11", "it's", "x=1"]),
        ("[7]", ["7"]),
    ],
)
def test_paths_are_taken_to_the_letter_alone_and_in_a_list(typed, expected):
    found = readable([f"ckpt={typed}"], "play")
    cfg = compose(found, "play")
    assert OmegaConf.to_container(OmegaConf.masked_copy(cfg, "ckpt"))["ckpt"] == expected
    assert readable(found, "play") == found


def test_an_empty_path_in_a_list_is_refused():
    with pytest.raises(UserError, match="between commas is empty"):
        readable(["ckpt=[a,,b]"], "play")
