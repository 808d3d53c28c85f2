"""scripts/make_emoji.py: emoji by category from an archive, and bad input in one line."""

import importlib
import io
import json
import tarfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TABLE = [
    {"image": "1.png", "category": "Food & Drink", "subcategory": "food-fruit", "has_img_google": True},
    {"image": "2.png", "category": "Flags", "subcategory": "country-flag", "has_img_google": True},
    {"image": "3.png", "category": "Flags", "subcategory": "country-flag", "has_img_google": False},
    {"image": "4.png", "category": "Component", "subcategory": "hair", "has_img_google": True},
]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("make_emoji")


@pytest.fixture
def archive(tmp_path):
    files = {"package/emoji.json": json.dumps(TABLE).encode()}
    files |= {f"package/img/google/64/{name}.png": name.encode() for name in ("1", "2", "3", "4", "1-tone")}
    with tarfile.open(tmp_path / "emoji.tgz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return tmp_path / "emoji.tgz"


def test_first_forms_are_sorted_by_category(script, archive, tmp_path, capsys):
    script.main(str(archive), str(tmp_path / "out"))
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").glob("*/*")}
    assert found == {"food-drink/1.png": b"1", "flags/2.png": b"2"}
    assert capsys.readouterr().out.split() == ["1", "flags", "1", "food-drink"]


def test_subcategories_may_be_the_folders(script, archive, tmp_path):
    script.main(str(archive), str(tmp_path / "out"), "subcategory")
    assert {path.parent.name for path in (tmp_path / "out").glob("*/*")} == {"food-fruit", "country-flag"}


def test_bad_input_is_one_line(script, archive, tmp_path):
    (tmp_path / "text.tgz").write_text("no archive")
    for given, words in [
        ([], "usage: "),
        ([tmp_path / "missing.tgz", "out"], "usage: "),
        ([archive, tmp_path / "out", "colour"], "usage: "),
        ([archive, tmp_path], "exists: remove it or name another folder"),
        ([tmp_path / "text.tgz", tmp_path / "out"], "it is no archive of emoji-datasource-google"),
    ]:
        with pytest.raises(SystemExit, match=words) as stopped:
            script.main(*map(str, given))
        assert "\n" not in str(stopped.value)
