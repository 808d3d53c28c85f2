"""Race our evaluation against torch-fidelity: the same PNG files, the same Inception network, in turns.

usage: python experiments/peers/fidelity.py [--images 64] [--size 256] [--batch 16] [--repeats 3] [--weights FILE]
       [--out FILE.json]

Two parts: "inception" reads one folder and runs Inception over it (theirs: the inception score; ours: make_stats),
"scores" goes from two folders to FID, inception score and KID (ours: make_stats, then evaluate). Without --weights the
network has random weights, which take as long as the trained ones. torch-fidelity is installed with this package; it
reads files with its default number of processes.
"""

import argparse
import contextlib
import json
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock


def main() -> None:
    """Time both parts and print the numbers."""
    parser = arguments()
    given = parser.parse_args()
    if given.weights is not None and not given.weights.is_file():
        parser.error(f"--weights {given.weights}: no such file; leave it out for random weights")
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = race(Path(folder), given)
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def arguments() -> argparse.ArgumentParser:
    """Return the options of the script."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, usage=argparse.SUPPRESS)
    for name, default in (("images", 64), ("size", 256), ("batch", 16), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("weights", "out"):
        parser.add_argument(f"--{name}", type=Path)
    return parser


def race(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Return, for each part, the medians in ms, the ratio theirs / ours, and images per second."""
    import torch
    from torch_fidelity import calculate_metrics

    from pmf_lightning import compose
    from pmf_lightning.evaluate import evaluate
    from pmf_lightning.make_stats import make_stats
    from pmf_lightning.profiling.benchmarks import timing

    fake, real = (write_images(folder / name, given.images, given.size) for name in ("fake", "real"))
    weights = given.weights or write_weights(folder / "inception.pth")
    ours = [f"extractor.weights={weights}", f"extractor.batch={given.batch}", f"batch_size={given.batch}"]
    theirs = {"feature_extractor_weights_path": str(weights), "batch_size": given.batch, "cuda": False}
    theirs |= {"cache": False, "verbose": False}

    subset = given.images // 2
    scores = {"isc": True, "fid": True, "kid": True, "kid_subset_size": subset, "input2": str(real)}

    def our_scores() -> None:
        statistics(real)
        options = [f"images={fake}", f"reference={folder / 'stats.npz'}", f"out={folder / 'out'}"]
        evaluate(compose([*options, f"protocol.kid_size={subset}", *ours], "evaluate"))

    def statistics(images: Path) -> None:
        (folder / "stats.npz").unlink(missing_ok=True)
        make_stats(compose([f"images={images}", f"out={folder / 'stats.npz'}", *ours], "make_stats"))

    parts = {
        "inception": (lambda: statistics(fake), lambda: calculate_metrics(input1=str(fake), isc=True, **theirs), 1),
        "scores": (our_scores, lambda: calculate_metrics(input1=str(fake), **scores, **theirs), 2),
    }
    facts = {"images": given.images, "size": given.size, "batch": given.batch, "repeats": given.repeats}
    facts |= {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name, (work, their_work, folders) in parts.items():
        times = timing.time_interleaved({"ours": work, "peer": their_work}, given.repeats)
        facts[name] = timing.compare(times["ours"], times["peer"], "peer")
        for side in ("ours", "peer"):
            facts[name][f"{side}_images_per_second"] = folders * given.images / facts[name][f"{side}_ms"] * 1e3
    return facts


def write_images(folder: Path, count: int, size: int) -> Path:
    """Write ``count`` PNG files of smooth noise, as photographs compress about as well; return ``folder``."""
    from PIL import Image

    from pmf_lightning.utils import rng

    folder.mkdir()
    for i in range(count):
        coarse = rng.uniform("peers", folder.name, i, count=3 * 32 * 32).view(32, 32, 3).mul(255).byte().numpy()
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.png")
    return folder


def write_weights(path: Path) -> Path:
    """Write random weights in the format of torch-fidelity's Inception; return ``path``."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as home

    network = home.FeatureExtractorInceptionV3
    with mock.patch.object(home, "load_state_dict_from_url"), mock.patch.object(network, "load_state_dict"):
        random = network("inception-v3-compat", ["2048", "logits_unbiased"])
    torch.save(random.state_dict(), path)
    return path


if __name__ == "__main__":
    main()
