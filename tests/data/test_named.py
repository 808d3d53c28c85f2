"""Sets that torchvision knows by name, read from small files in their formats."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from named_files import idx, pixels, write_celeba, write_cifar, write_flowers, write_idx, write_stl
from omegaconf import OmegaConf
from PIL import Image

from pmf_lightning import UserError
from pmf_lightning.config.compose import CONF
from pmf_lightning.config.resolvers import register_resolvers
from pmf_lightning.data.dataset import check_source
from pmf_lightning.data.sources.named import finding
from pmf_lightning.data.sources.named.fitting import fit
from pmf_lightning.data.sources.named.known import FASHION_MNIST
from pmf_lightning.utils.hydra_compat import instantiate


def opened(name, root, *options):
    """Build the data of conf/data, check and return them; the cache is next to the files."""
    register_resolvers()
    chain = [OmegaConf.load(CONF / "data" / f"{name}.yaml")]
    while "defaults" in chain[0]:
        chain.insert(0, OmegaConf.load(CONF / "data" / f"{chain[0].pop('defaults')[0]}.yaml"))
    places = OmegaConf.create({"root": str(root), "cache_dir": f"{root}/cache"})
    data = OmegaConf.merge(*chain, places, OmegaConf.from_dotlist(list(options)))
    source = instantiate(OmegaConf.create({"data": data}).data)
    check_source(source)
    source.check()
    return source


def refused(name, root, *options):
    """The line that a set is refused with, when it is checked or opened."""
    with pytest.raises(UserError) as caught:
        opened(name, root, *options).train()
    line = str(caught.value)
    assert "\n" not in line
    return line


def images_of(split):
    return split.batch(range(len(split)))[0].numpy()


@pytest.mark.parametrize(("name", "folder", "packed"), [("mnist", "MNIST/raw", False), ("fashion_mnist", ".", True)])
def test_idx_files_are_padded_to_32(tmp_path, name, folder, packed):
    images = write_idx(tmp_path / folder, packed=packed)
    source = opened(name, tmp_path)
    train, held_out = source.train(), source.held_out()
    assert (len(train), len(held_out)) == (30, 20)
    padded = images_of(train)
    assert padded.shape == (30, 1, 32, 32)
    assert np.array_equal(padded[:, 0, 2:30, 2:30], images)
    assert padded.sum() == images.sum()  # black around
    assert train.labels.tolist() == [i % 10 for i in range(30)]
    assert source.class_names[8].lower() == {"mnist": "8 - eight", "fashion_mnist": "bag"}[name]
    assert opened(name, tmp_path, "resolution=28").fingerprint() != source.fingerprint()


def test_cifar_pickles_in_the_splits_of_torchvision(tmp_path, monkeypatch):
    images = write_cifar(tmp_path / "cifar-10-batches-py")
    source = opened("cifar10", tmp_path)
    train = source.train()
    assert np.array_equal(images_of(train), images)
    assert source.class_names == [f"class {i}" for i in range(10)]
    theirs = torchvision.datasets.CIFAR10
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *arguments: True)
    for train_split, ours in ((True, train), (False, source.held_out())):
        expected = theirs(tmp_path, train=train_split)
        assert ours.labels.tolist() == expected.targets
        assert np.array_equal(images_of(ours).transpose(0, 2, 3, 1), expected.data)
    write_cifar(tmp_path / "hundred", classes=100)
    fine = opened("cifar100", tmp_path / "hundred")  # the folder of the files itself
    assert (len(fine.train()), len(fine.class_names)) == (8, 100)
    assert fine.held_out().labels.tolist() == list(range(3, 11))


def test_stl_and_its_images_without_labels(tmp_path):
    images = write_stl(tmp_path / "stl10_binary")
    assert np.array_equal(images_of(opened("stl10", tmp_path).train()), images)
    assert opened("stl10", tmp_path).train().labels.tolist() == list(range(10))
    assert "the split unlabeled has no labels; set data.classes=1" in refused(
        "stl10", tmp_path, "train_splits=[train,unlabeled]"
    )
    every = opened("stl10", tmp_path, "train_splits=[train,unlabeled]", "classes=1", "resolution=24")
    assert images_of(every.train()).shape == (20, 3, 24, 24)
    assert every.train().labels.tolist() == [0] * 20
    assert every.class_names == ["stl10"]


def test_photographs_are_cropped_and_decoded_once(tmp_path, capsys):
    write_flowers(tmp_path / "flowers-102")
    source = opened("flowers102", tmp_path, "resolution=16")
    train, held_out = source.train(), source.held_out()
    assert (len(train), len(held_out)) == (12, 6)  # train and val
    assert train.labels.tolist() == [number * 7 % 102 for number in range(7, 19)]
    assert np.abs(images_of(train).mean((2, 3))[:, 0] - np.arange(70, 190, 10)).max() < 3
    assert "decoding" in capsys.readouterr().out
    opened("flowers102", tmp_path, "resolution=16").train()
    assert "decoding" not in capsys.readouterr().out

    write_celeba(tmp_path / "celeba")
    faces = opened("celeba", tmp_path, "resolution=16")
    assert (faces.classes, faces.class_names, len(faces.train())) == (1, ["face"], 3)
    named = opened("celeba", tmp_path, "resolution=16", "label=Male")
    assert (named.classes, named.class_names) == (2, ["not Male", "Male"])
    assert named.train().labels.tolist() == [1, 0, 1]
    assert named.held_out().labels.tolist() == [0, 1, 0]
    assert named.fingerprint() != faces.fingerprint()
    assert "data.label=male: CelebA has no such attribute; did you mean Male" in refused(
        "celeba", tmp_path, "label=male"
    )


def test_images_are_padded_not_enlarged_by_a_fraction():
    images = pixels(3, 3, 8, 8)
    whole = fit(images, 19, 3)  # twice 8, and 3 black pixels of which 2 are at the end
    assert whole[:, :, 1:17, 1:17].any((2, 3)).all()
    whole[:, :, 1:17, 1:17] = 0
    assert not whole.any()
    grey = fit(images, 8, 1)
    expected = [np.asarray(Image.fromarray(one.transpose(1, 2, 0)).convert("L")) for one in images]
    assert np.array_equal(grey[:, 0], np.stack(expected))
    assert np.array_equal(fit(images[:, :1], 8, 3), np.repeat(images[:, :1], 3, 1))


class Harm:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_damaged_files_are_refused_in_one_line_and_run_nothing(tmp_path):
    victim, batches = tmp_path / "ran", tmp_path / "cifar-10-batches-py"
    write_cifar(batches)
    (batches / "data_batch_2").write_bytes(pickle.dumps({"data": Harm(str(victim)), "labels": []}))
    assert "data_batch_2 is damaged (it is no pickle of arrays" in refused("cifar10", tmp_path)
    assert not victim.exists()
    labels = {"labels": [10] * 4, "data": pixels(4, 3072)}
    (batches / "data_batch_2").write_bytes(pickle.dumps(labels))
    assert "a label is 10, and there are 10 classes" in refused("cifar10", tmp_path)
    (batches / "data_batch_2").write_bytes(pickle.dumps({**labels, "data": pixels(4, 100)}))
    assert "data_batch_2 is damaged (it has no uint8 data [n, 3072]): remove it" in refused("cifar10", tmp_path)

    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    good = path.read_bytes()
    for content, reason in (
        (good[: len(good) // 2], "damaged gzip"),
        (b"text", "it is no idx file of bytes in 3 dimensions"),
        (idx(pixels(2**4, 28, 28))[:-1], "it does not hold the 12,544 bytes that its header states"),
        (gzip.compress(idx(pixels(4, 28, 28))), "4 images and 30 labels"),
    ):
        path.write_bytes(content)
        assert f"{path.name} is damaged ({reason}" in refused("mnist", tmp_path)
    labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], np.uint8)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    path.write_bytes(idx(pixels(10, 28, 28)))
    assert "is a file of FashionMNIST, not of MNIST" in refused("mnist", tmp_path)
    assert len(opened("fashion_mnist", tmp_path).train()) == 10


def test_missing_files_name_the_places_and_the_remedy(tmp_path, monkeypatch):
    line = refused("cifar10", tmp_path)
    assert f"data=cifar10: its files are not in {tmp_path}, data, {tmp_path}/cache/datasets" in line
    assert "put the folder cifar-10-batches-py of https://" in line
    assert "data.download=true" in line
    assert "data.root=no is not a folder: set it to one" in refused("mnist", "no", f"cache_dir={tmp_path}")
    for option, words in (
        ("classes=1001", "data.classes=1001: CIFAR10 has 10; set data.classes=10"),
        ("train_splits=[valid]", "CIFAR10 has no split valid; it has train, test"),
        ("held_out_splits=[train]", "train is trained on"),
        ("train_splits=[train,train]", "data.train_splits=[train,train]: a split is listed twice; list it once"),
        ("dataset=CIFAR", "did you mean CIFAR10"),
    ):
        assert words in refused("cifar10", tmp_path, option)

    def offline(root, download):
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    line = refused("cifar10", tmp_path, "download=true")
    assert f"cifar10 cannot be downloaded to {tmp_path} (no route to host); put" in line
    assert line.count("data.download=true") == 1, "it is set already"

    def arrives(root, download):
        write_cifar(Path(root) / "cifar-10-batches-py")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", arrives)
    assert len(opened("cifar10", tmp_path, "download=true").train()) == 40


def test_a_folder_that_was_not_given_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "data" / "cifar-10-batches-py")
    assert len(opened("cifar10", "/no/such", "cache_dir=cache").train()) == 40
    line = "data.root=/no/such holds no files of CIFAR10: those in data/cifar-10-batches-py are used\n"
    assert capsys.readouterr().out == line
    opened("cifar10", "data", "cache_dir=cache").train()
    assert capsys.readouterr().out == ""


def test_places_of_distributions_come_last(tmp_path):
    debian = type(FASHION_MNIST)(
        "FashionMNIST", FASHION_MNIST.folders, FASHION_MNIST.files, 10, "", (str(tmp_path / "a"),)
    )
    write_idx(tmp_path / "a")
    arguments = (debian, "fashion_mnist", str(tmp_path), ["train"], str(tmp_path / "cache"))
    assert finding.find(*arguments) == tmp_path / "a"
    write_idx(tmp_path / "fashion-mnist")
    assert finding.find(*arguments) == tmp_path / "fashion-mnist"
    assert "/usr/share/datasets/fashion-mnist" in FASHION_MNIST.homes
