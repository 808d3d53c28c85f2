"""Pages of the site for files outside docs/ that a page links to: sources with line numbers, reports, plain files."""

import ast
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
FUNCTION = re.compile(r'<a href="((?:\.\./)*files/([\w/]+\.py)\.html)"><code>\w+\.py:([\w.]+)</code>')
NAMED = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s#]+)\)")
SHOWN = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".mjs": "javascript"}


@dataclass(frozen=True)
class Target:
    """A file of the repository and its place on the site; ``text`` is None where the file is copied as it is."""

    path: Path
    page: str
    text: str | None = None


def targets(root: Path, pages: Iterable[Path]) -> dict[str, Target]:
    """Return the targets of all links that leave docs/, by path below the root; of Markdown files their links too."""
    found: dict[str, Target] = {}
    queue = list(pages)
    while queue:
        page = queue.pop()
        for link, _ in LINK.findall(page.read_text()):
            path = resolved(root, page, link)
            if path is None or (name := str(path.relative_to(root))) in found:
                continue
            found[name] = _target(root, path)
            if path.suffix == ".md":
                queue.append(path)
    return found


def resolved(root: Path, page: Path, link: str) -> Path | None:
    """Return the file that a link means if it is in the repository and not in docs/, else None."""
    if "://" in link or link.startswith(("mailto:", "<")):
        return None
    path = Path(os.path.normpath(page.parent / link))
    if path.is_dir():
        path = path / "README.md"
    outside = path.is_relative_to(root) and not path.is_relative_to(root / "docs")
    return path if outside and path.is_file() else None


def _target(root: Path, path: Path) -> Target:
    name = path.relative_to(root)
    if path.suffix == ".md":
        return Target(path, f"files/{name}", path.read_text())
    if path.suffix not in SHOWN:
        return Target(path, f"files/{name}")
    head = f"---\ntitle: {name.name}\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n# `{name}`\n\n"
    text = path.read_text().replace("```", "'''")
    if len(text) > 200_000:
        return Target(path, f"files/{name}")
    return Target(path, f"files/{name}.md", f'{head}```{SHOWN[path.suffix]} linenums="1"\n{text}\n```\n')


def relinked(markdown: str, root: Path, source: Path, here: str, found: dict[str, Target]) -> str:
    """Return the Markdown of the page ``here``, whose source is ``source``, with its links to ``found``."""

    def replaced(match: re.Match) -> str:
        path = resolved(root, source, match[1])
        if path is not None and (target := found.get(str(path.relative_to(root)))):
            return os.path.relpath(target.page, os.path.dirname(here) or ".") + (match[2] or "")
        inside = Path(os.path.normpath(source.parent / match[1]))
        if here.startswith("files/") and inside.is_file() and inside.is_relative_to(root / "docs"):
            return os.path.relpath(inside.relative_to(root / "docs"), os.path.dirname(here)) + (match[2] or "")
        return match[0]

    def without_folder(match: re.Match) -> str:
        folder = source.parent / match[2]
        return (
            match[1] if "://" not in match[2] and folder.is_dir() and not (folder / "README.md").is_file() else match[0]
        )

    return LINK.sub(replaced, NAMED.sub(without_folder, markdown))


def with_lines(html: str, root: Path) -> str:
    """Return the HTML of a page in which links named file.py:function lead to the line where the function begins."""

    def replaced(match: re.Match) -> str:
        line = _line_of(root / match[2], match[3])
        return match[0].replace('.py.html"', f'.py.html#__codelineno-0-{line}"') if line else match[0]

    return FUNCTION.sub(replaced, html)


def _line_of(path: Path, name: str) -> int | None:
    body = ast.parse(path.read_text()).body if path.is_file() else []
    node = None
    for part in name.split("."):
        node = next((n for n in body if getattr(n, "name", None) == part), None)
        if node is None:
            return None
        body = getattr(node, "body", [])
    return node.lineno
