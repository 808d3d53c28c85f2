"""Pages of the API reference: one mkdocstrings block for each public name, grouped by what it is for."""

import ast
from pathlib import Path

# What code from outside implements (docs/extending.md): module -> names.
CONTRACTS = {
    "objectives.base": ("Objective", "ObjectiveBase", "Network", "Description", "Passes", "EncoderRequest"),
    "data.dataset": ("DataSource", "DataSourceBase", "ImageDataset", "ArrayDataset"),
    "encoders.base": ("Extractor", "Features"),
}


def public_names(root: Path) -> dict[str, str]:
    """Return public name -> module below pmf_lightning, read from ``_HOMES`` of the package without importing it."""
    tree = ast.parse((root / "pmf_lightning" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            return ast.literal_eval(node.value)
    raise LookupError("pmf_lightning/__init__.py has no _HOMES")


def pages(root: Path) -> dict[str, str]:
    """Return path -> text: one page for each folder of the package that holds public names."""
    folders: dict[str, list[str]] = {}
    for name, module in public_names(root).items():
        folders.setdefault(module.split(".")[0], []).append(f"{module}.{name}")
    written = {}
    for folder, names in sorted(folders.items()):
        blocks = [f"::: pmf_lightning.{path}\n" for path in names]
        listed = ", ".join(f"`{path.rpartition('.')[2]}`" for path in names)
        head = f"---\ntitle: {folder}\n---\n\n# pmf_lightning: {folder}\n\n`from pmf_lightning import` {listed}\n\n"
        written[f"api/{folder}.md"] = head + "\n".join(blocks)
    names = [f"::: pmf_lightning.{module}.{name}\n" for module, listed in CONTRACTS.items() for name in listed]
    head = "---\ntitle: contracts\n---\n\n# Contracts for your own code\n\nSee [extending](../extending.md).\n\n"
    return {**written, "api/contracts.md": head + "\n".join(names)}
