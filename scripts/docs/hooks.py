"""Hooks of mkdocs.yml: pages that are made from conf/, from docstrings and from the files that the docs link to."""

import re
from pathlib import Path

import api_pages
import configuration_pages
import repository_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"configuration": configuration_pages.pages, "api": api_pages.pages}
_outside: dict[str, repository_pages.Target] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation entries "- Title: configuration/*" and "- Title: api/*" with the generated pages."""
    config.nav = [_filled(entry) for entry in config.nav]
    return config


def _filled(entry: dict) -> dict:
    (title, value), *_ = entry.items()
    folder, star, _ = value.partition("/*") if isinstance(value, str) else ("", "", "")
    return {title: list(GENERATED[folder](ROOT))} if star else entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files outside docs/ that a page links to."""
    for make in GENERATED.values():
        for path, text in make(ROOT).items():
            files.append(File.generated(config, path, content=text))
    pages = {file.src_uri: ROOT / "docs" / file.src_uri for file in files if file.is_documentation_page()}
    _outside.clear()
    _outside.update(repository_pages.targets(ROOT, [path for path in pages.values() if path.is_file()]))
    for target in _outside.values():
        content = target.text if target.text is not None else target.path.read_bytes()
        file = File.generated(config, target.page, content=content)
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to the pages that were added for their targets."""
    here = page.file.src_uri
    source = next((t.path for t in _outside.values() if t.page == here), ROOT / "docs" / here)
    return repository_pages.relinked(markdown, ROOT, source, here, _outside)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link functions to their lines, and let wide tables scroll, so that the page does not scroll sideways."""
    html = repository_pages.with_lines(html, ROOT)
    return re.sub(r"<table>.*?</table>", lambda t: f'<div class="wide">{t[0]}</div>', html, flags=re.S)
