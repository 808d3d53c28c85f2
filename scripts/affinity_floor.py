"""Measure whether Drifting's field moves samples apart or together: python scripts/affinity_floor.py [override ...]

Samples are real images of a class, moved in a feature towards their mean until a share of their spread is left;
positives are other images of the class, as many. The rate is the component of the field along the deviation of a sample
from the mean, over that deviation: above 0 samples move apart, below 0 they collapse. Printed are the mean rate over
classes and features, and the share of them with a rate below 0, with the official floor of squared affinities and
without. The default is model=drifting_tiny in 16 x 16 raw pixels; data=fashion_mnist drift_features=lite0 are others.
"""

import sys
from statistics import mean

import torch
from torch import Tensor

from pmf_lightning import compose
from pmf_lightning.data.transforms import to_float
from pmf_lightning.objectives.drifting_field import LEAST_DISTANCE, affinities, centred, distances, mean_shift
from pmf_lightning.objectives.drifting_loss import SELF_DISTANCE
from pmf_lightning.pipeline.parts import make_part, make_source

SPREADS, SAMPLES, TEMPERATURES, FLOORS = (1.0, 0.5, 0.1), (8, 16, 32, 64), (0.2, 0.05, 0.02), (1e-6, 0.0)
CLASSES = 10


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


def features(overrides: list[str]) -> list[Tensor]:
    """Return features of the training images of each class, [images, S] for each feature and one of its locations."""
    cfg = compose(overrides)
    source = make_source(cfg)
    encoders = make_part(cfg, "drift_features")(source=source, cache_dir=cfg.cache_dir)
    train = source.train()
    labels = torch.as_tensor(train.labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    found = []
    for label in range(min(source.classes, CLASSES)):
        rows = order[labels[order] == label][: 2 * max(SAMPLES)]
        with torch.no_grad():
            maps = encoders(to_float(torch.as_tensor(train.images[rows.numpy()])))
        found += [values[:, values.shape[1] // 2].float() for values in maps.values()]
    return found


def main() -> None:
    """Print the table in Markdown."""
    problems = features(sys.argv[1:] or ["model=drifting_tiny", "data.resolution=16"])
    columns = [(temperature, floor) for temperature in TEMPERATURES for floor in FLOORS]
    print("| spread left | samples |", " | ".join(f"{t:g}, floor {floor:g}" for t, floor in columns), "|")
    print("|---|---|" + "---|" * len(columns))
    for spread in SPREADS:
        for count in SAMPLES:
            cells = []
            for options in columns:
                pairs = [(real[:count], real[-count:]) for real in problems]
                rates = [rate(torch.lerp(x.mean(0), x, spread), pos, *options) for pos, x in pairs]
                cells.append(f"{mean(rates):+.4f} ({mean(value < 0 for value in rates):.0%})")
            print(f"| {spread:g} | {count} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
