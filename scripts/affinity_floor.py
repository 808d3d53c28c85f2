"""Measure whether Drifting's field moves samples apart or together: python scripts/affinity_floor.py

Samples are real digits of a class, moved towards their mean until a share of their spread is left; positives are other
digits of the class, as many. The printed rate is the component of the field along the deviation of a sample from the
mean, over that deviation: above 0 samples move apart, below 0 they collapse. Mean of ten classes, in raw pixels of
16 x 16, with the official floor of squared affinities and without.
"""

from statistics import mean

import torch
from torch import Tensor

from pmf_lightning import compose
from pmf_lightning.objectives.drifting_field import LEAST_DISTANCE, affinities, centred, distances, mean_shift
from pmf_lightning.objectives.drifting_loss import SELF_DISTANCE
from pmf_lightning.pipeline.parts import make_source

SPREADS, SAMPLES, TEMPERATURES, FLOORS = (1.0, 0.5, 0.1), (8, 16, 32, 64), (0.2, 0.05, 0.02), (1e-6, 0.0)


def rate(x: Tensor, positives: Tensor, temperature: float, floor: float) -> float:
    """Return the rate for samples [G,S] and positives [P,S]; the units are those of ``drift_loss``."""
    x, positives = centred([x[None], positives[None]])
    targets = torch.cat((x, positives), dim=1)
    distance = distances(x, targets)
    itself = distance.diagonal(dim1=1, dim2=2)
    itself.fill_(LEAST_DISTANCE)
    distance /= distance.mean()
    itself.add_(SELF_DISTANCE)
    field = mean_shift(affinities(-distance / temperature, "both", floor), x, targets, x.shape[1], 1.0, 1.0)
    deviation = x - x.mean(1, keepdim=True)
    return ((field * deviation).sum() / deviation.square().sum()).item()


def main() -> None:
    """Print the table in Markdown."""
    train = make_source(compose(["model=drifting_tiny", "data.resolution=16"])).train()
    pixels, labels = torch.as_tensor(train.images).flatten(1) / 127.5 - 1, torch.as_tensor(train.labels)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    classes = [pixels[order][labels[order] == label] for label in range(10)]
    columns = [(temperature, floor) for temperature in TEMPERATURES for floor in FLOORS]
    print("| spread left | samples |", " | ".join(f"{t:g}, floor {floor:g}" for t, floor in columns), "|")
    print("|---|---|" + "---|" * len(columns))
    for spread in SPREADS:
        for count in SAMPLES:
            rates = []
            for options in columns:
                pairs = [(real[:count], real[-count:]) for real in classes]
                rates.append(mean(rate(torch.lerp(x.mean(0), x, spread), pos, *options) for pos, x in pairs))
            print(f"| {spread:g} | {count} |", " | ".join(f"{value:+.4f}" for value in rates), "|")


if __name__ == "__main__":
    main()
