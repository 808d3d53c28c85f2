"""The PyTorch files of iMF (arXiv 2512.02012): iMF-B-2.pth and its kin."""

from pmf_lightning.models.official.meanflow import NORM, RULES, STACKS, TABLE
from pmf_lightning.models.official.names import Family

IMF = Family(
    name="iMF",
    rules=((r"patch_embedding\.patches\.", "x_embedder.proj."), *RULES),
    mark="x_embedder.proj.weight",
    patches="x_embedder.proj.weight",
    norm=NORM,
    table=TABLE,
    stacks=STACKS,
    flat_tokens=True,
    recomputed=frozenset(),
    keeps_v_layer=True,
    head_v=True,
    models={
        "iMF-B/2": (768, 12, 2),
        "iMF-M/2": (768, 24, 2),
        "iMF-L/2": (1024, 32, 2),
        "iMF-XL/2": (1024, 48, 2),
        "iMF-B/16": (768, 12, 16),
        "iMF-M/16": (768, 24, 16),
        "iMF-L/16": (1024, 32, 16),
        "iMF-XL/16": (1024, 48, 16),
    },
)
