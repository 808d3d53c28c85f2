"""Convert the released PyTorch weights of pMF, iMF and JiT to our backbones and back."""

from pmf_lightning.weights.families import WeightFormat, positions_are_trained, preset
from pmf_lightning.weights.read import DECAYS, PREFIX, SETS, bare, chosen_set, read_official, read_tensors, sets_in
from pmf_lightning.weights.recognize import WeightsDescription, look
from pmf_lightning.weights.translate import (
    FAMILIES,
    family_of,
    load_official,
    official_name,
    official_tensors,
    official_weights,
    recognise,
    translate,
)

__all__ = [
    "DECAYS",
    "FAMILIES",
    "PREFIX",
    "SETS",
    "WeightFormat",
    "WeightsDescription",
    "bare",
    "chosen_set",
    "family_of",
    "load_official",
    "look",
    "official_name",
    "official_tensors",
    "official_weights",
    "positions_are_trained",
    "preset",
    "read_official",
    "read_tensors",
    "recognise",
    "sets_in",
    "translate",
]
