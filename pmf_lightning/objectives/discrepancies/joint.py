"""Features of the joint law of image and label: the code of the label is appended to the features of the image.

RDM (arXiv 2607.02375) does this with text: [phi | beta tau(c)] with unit codes tau, and beta the typical distance of
features divided by that of codes. One Gaussian kernel over both blocks is the product of an image and a label kernel.
The Frechet distance sees the means of the classes through the covariance of the blocks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import check_features
from pmf_lightning.objectives.discrepancies.kernels import median_bandwidth
from pmf_lightning.utils.precision import Number


@dataclass(frozen=True)
class JointLaw:
    """Appends ``beta`` times the code of its label to each row of features.

    Args:
        codes: one unit vector per class [classes, code].
        beta: scale of the codes in the units of the features; 0 ignores the labels.

    Raises ValueError for a negative beta.
    """

    codes: Float[Tensor, "classes code"]
    beta: Number

    def __post_init__(self):
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta}: the scale of the label's code is 0 or more")

    @classmethod
    def fit(
        cls,
        features: Float[Tensor, "..."],
        classes: int,
        codes: Float[Tensor, "..."] | None = None,
        scale: Number = 1.0,
        seed: int = 0,
    ) -> "JointLaw":
        """Return the law with beta = scale * (median distance of real ``features`` [n,D]) / (that of the codes).

        ``codes`` [classes, code] are normalised to length 1; None means one-hot codes, whose distance is sqrt(2).
        Raises ValueError for another number of codes, or one class.
        """
        check_features(features)
        codes = torch.eye(classes, dtype=torch.float64) if codes is None else codes
        if classes < 2 or codes.ndim != 2 or len(codes) != classes:
            raise ValueError(f"codes {list(codes.shape)} for {classes} classes; give one row each, and at least 2")
        codes = codes / codes.norm(dim=1, keepdim=True)
        return cls(codes, scale * median_bandwidth(features, seed=seed) / median_bandwidth(codes))

    def __call__(self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n e"]:
        """Return [features | beta * code of the label], [n, D + code], in the dtype of ``features``."""
        return torch.cat((features, self.beta * self.codes.to(features)[labels]), dim=1)
