"""The example of docs/extending.md: its files, and its commands in their order."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
_FILE = re.compile(r'```(?:python|yaml) title="([^"]+)"\n(.*?)```', re.DOTALL)


def write_example(folder: Path) -> Path:
    """Write the files of the page below ``folder``; return its config folder."""
    for name, text in _FILE.findall(PAGE.read_text()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "myconf"


def commands() -> list[str]:
    """Return the lines of the page's shell blocks."""
    return [
        line for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()
    ]
