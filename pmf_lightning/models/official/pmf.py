"""The PyTorch files of pMF (arXiv 2601.22158): pMF-B-16.pt and its kin."""

from pmf_lightning.models.official.meanflow import NORM, RULES, STACKS, TABLE
from pmf_lightning.models.official.names import Family

PMF = Family(
    name="pMF",
    rules=(
        (r"patch_embedding\.patches\.", "x_embedder.proj1."),
        (r"patch_embedding\.expand\.", "x_embedder.proj2."),
        (r"positions\.weight", "pos_embed"),
        *RULES,
    ),
    mark="x_embedder.proj1.weight",
    patches="x_embedder.proj1.weight",
    norm=NORM,
    table=TABLE,
    stacks=STACKS,
    flat_tokens=False,
    recomputed=frozenset({"rope_freqs"}),
    keeps_v_layer=False,
    head_v=True,
    models={
        "pMF-B/4": (768, 16, 4),
        "pMF-B/16": (768, 16, 16),
        "pMF-B/32": (768, 16, 32),
        "pMF-B/64": (768, 16, 64),
        "pMF-L/16": (1024, 32, 16),
        "pMF-L/32": (1024, 32, 32),
        "pMF-H/16": (1280, 48, 16),
        "pMF-H/32": (1280, 48, 32),
    },
)
