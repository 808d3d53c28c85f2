"""Photographs of the usual size of ImageNet's, 500 x 375 JPEG files, cut from two that ship inside scikit-learn."""

from pathlib import Path

from PIL import Image

from pmf_lightning import draws

WIDTH, HEIGHT, QUALITY = 500, 375, 95


def make_originals(folder: Path, count: int) -> None:
    """Write ``count`` JPEG files to ``folder``/<class>/, pieces of a photograph of a temple and one of a flower."""
    from sklearn.datasets import load_sample_images  # a second of import that only this function needs

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i in range(count):
        label = i % len(photographs)
        photograph = photographs[label]
        across, down = draws.uniform("benchmark", "original", i, count=2).tolist()
        left, top = int(across * (photograph.width - WIDTH + 1)), int(down * (photograph.height - HEIGHT + 1))
        path = folder / f"class{label}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, quality=QUALITY)
