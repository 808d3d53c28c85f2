"""The masked autoencoder whose encoder provides the features of Drifting."""

from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.layers import patchify, unpatchify
from pmf_lightning.models.mae.network import MAE

__all__ = ["MAE", "MAEEncoder", "patchify", "unpatchify"]
