"""The released PyTorch weights of pMF and iMF, into our backbone and back."""

from pmf_lightning.models.official.look import Look, look
from pmf_lightning.models.official.names import Family, preset
from pmf_lightning.models.official.weights import (
    FAMILIES,
    PREFIX,
    bare,
    family_of,
    load_official,
    official_name,
    official_tensors,
    official_weights,
    read_official,
    read_tensors,
    recognise,
    translate,
)

__all__ = [
    "FAMILIES",
    "PREFIX",
    "Family",
    "Look",
    "bare",
    "family_of",
    "load_official",
    "look",
    "official_name",
    "official_tensors",
    "official_weights",
    "preset",
    "read_official",
    "read_tensors",
    "recognise",
    "translate",
]
