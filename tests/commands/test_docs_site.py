"""The site: pages made from conf/ and docstrings are complete, every page is in the navigation, nothing is remote."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from processes import python

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import api_pages  # noqa: E402
import configuration_pages  # noqa: E402
import repository_pages  # noqa: E402

CONF = ROOT / "conf"
PAGES = configuration_pages.pages(ROOT)


def test_every_file_of_conf_is_in_the_configuration_reference():
    text = "\n".join(PAGES.values())
    for path in CONF.rglob("*.yaml"):
        assert re.search(rf"^## `(?:[\w/]+/)?{path.stem}`$", text, re.M), path


def test_a_page_has_each_key_with_its_default_and_its_comment():
    text = """# A group.
# Second line.
part:
  plain: 3  # what it is | more,
            # and its second line
  # above a key
  listed: [1, 2]
  nested: {a: 1, b: "x # y"}  # of both
  head:   # of a section
    last: null
"""
    assert configuration_pages.head_of(text) == "A group.\nSecond line."
    rows = [(row.key, row.value, row.comment) for row in configuration_pages.rows_of(text)]
    assert rows == [
        ("part.plain", "3", "what it is | more, and its second line"),
        ("part.listed", "[1, 2]", "above a key"),
        ("part.nested", '{a: 1, b: "x # y"}', "of both"),
        ("part.head", "", "of a section"),
        ("part.head.last", "null", ""),
    ]


def test_all_keys_of_a_run_are_documented():
    page = PAGES["configuration/commands.md"]
    assert "| `seed` | `0` | every random number of the run depends on it |" in page
    undocumented = [row.key for row in configuration_pages.rows_of((CONF / "run.yaml").read_text()) if not row.comment]
    assert len(undocumented) < 12, undocumented


def test_the_api_reference_has_every_public_name():
    text = "\n".join(api_pages.pages(ROOT).values())
    import pmf_lightning

    for name in pmf_lightning.__all__:
        assert re.search(rf"^::: pmf_lightning\.[\w.]+\.{name}$", text, re.M) or name.startswith("_"), name


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = str(config["nav"])
    for path in (ROOT / "docs").rglob("*.md"):
        assert path.relative_to(ROOT / "docs").as_posix() in listed, path


def test_links_that_leave_docs_lead_to_pages_of_the_site(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "src.py").write_text("x = 1\n\n\nclass A:\n    def f(self): ...\n")
    (tmp_path / "note.md").write_text("[a](docs/page.md#part) [b](src.py)\n")
    page = tmp_path / "docs" / "page.md"
    page.write_text("[`src.py:A.f`](../src.py) [n](../note.md) [w](https://example.org)\n")
    found = repository_pages.targets(tmp_path, [page])
    assert sorted(found) == ["note.md", "src.py"]
    relinked = repository_pages.relinked(page.read_text(), tmp_path, page, "page.md", found)
    assert relinked == ("[`src.py:A.f`](files/src.py.md) [n](files/note.md) [w](https://example.org)\n")
    html = '<a href="../files/src.py.html"><code>src.py:A.f</code></a>'
    assert repository_pages.with_lines(html, tmp_path) == html.replace(".html", ".html#__codelineno-0-5")
    note = found["note.md"]
    assert repository_pages.relinked(note.text, tmp_path, note.path, note.page, found) == (
        "[a](../page.md#part) [b](src.py.md)\n"
    )


def test_contributing_names_every_folder_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = [path.parent.name for path in (ROOT / "pmf_lightning").glob("*/__init__.py")]
    assert len(folders) > 10
    assert not [name for name in folders if f" {name}/" not in text]


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M)}
    assert {"train", "test", "docs"} <= named <= targets


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material")
    done = python("-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path, cwd=ROOT, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]* src=[\"']?(?:https?:)?//|<link[^>]* href=[\"']?(?:https?:)?//"
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 60
    assert not [page for page in pages if loaded.search(page.read_text())]
    assert not [css for css in tmp_path.rglob("*.css") if re.search(r"url\([\"']?(?:https?:)?//", css.read_text())]
    assert (tmp_path / "search" / "search_index.js").stat().st_size > 100_000
