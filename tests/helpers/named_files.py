"""Small files in the formats of the sets that torchvision downloads, with random pixels."""

import gzip
import pickle

import numpy as np
from PIL import Image


def pixels(count, *shape, seed=0):
    """Random uint8 images."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def idx(content):
    """The bytes of an idx file."""
    return bytes((0, 0, 8, content.ndim)) + np.array(content.shape, ">i4").tobytes() + content.tobytes()


def write_idx(folder, train=30, test=20, packed=True):
    """Write MNIST's four files of 28 x 28 pixels, labels cycling over ten classes; return the training images."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("t10k", test)):
        images, labels = pixels(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(content)
            if packed:
                (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(data, 1))
            else:
                (folder / f"{name}-{kind}-ubyte").write_bytes(data)
    return pixels(train, 28, 28, seed=train)


def write_cifar(folder, classes=10, per_file=8):
    """Write CIFAR-10 (or, with 100 classes, CIFAR-100) in pickles; return the training images [n,3,32,32]."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ["train", "test"] if classes == 100 else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    fine = "fine_" if classes == 100 else ""
    for seed, name in enumerate(files):
        labels = [(3 * seed + i) % classes for i in range(per_file)]
        rows = pixels(per_file, 3072, seed=seed)
        content = {
            "batch_label": name,
            f"{fine}labels": labels,
            "data": rows,
            "filenames": [f"{i}.png" for i in labels],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {f"{fine}label_names": [f"class {i}" for i in range(classes)], "num_vis": 3072}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return np.concatenate([pixels(per_file, 3, 32, 32, seed=seed) for seed in range(len(files) - 1)])


def write_stl(folder, count=10):
    """Write STL-10's binary files; return the training images [n,3,96,96]."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("train", "test", "unlabeled")):
        (folder / f"{name}_X.bin").write_bytes(pixels(count, 3, 96, 96, seed=seed).transpose(0, 1, 3, 2).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes((np.arange(count, dtype=np.uint8) % 10 + 1).tobytes())
    return pixels(count, 3, 96, 96)


def write_flowers(folder, count=6):
    """Write Flowers-102: ``count`` photographs in each of the three splits, of 40 x 30 pixels of one colour."""
    from scipy.io import savemat

    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 3 * count + 1):
        Image.new("RGB", (40, 30), (number * 10, 0, 0)).save(folder / "jpg" / f"image_{number:05d}.jpg", quality=95)
    numbers = np.arange(1, 3 * count + 1)
    savemat(folder / "imagelabels.mat", {"labels": (numbers * 7 % 102 + 1).astype(np.uint8)})
    sets = {
        key: part.astype(np.uint16) for key, part in zip(("tstid", "trnid", "valid"), np.split(numbers, 3), strict=True)
    }
    savemat(folder / "setid.mat", sets)


def write_celeba(folder, count=9):
    """Write CelebA: faces of 20 x 26 pixels, splits in turn, the attribute Male for every second one."""
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        Image.new("RGB", (20, 26), (0, 20 * number, 0)).save(images / name, quality=95)
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
    rows = "".join(f"{name}  {'-1' if i % 2 else ' 1'} -1\n" for i, name in enumerate(names))
    (folder / "list_attr_celeba.txt").write_text(f"{count}\nMale Smiling \n{rows}")
