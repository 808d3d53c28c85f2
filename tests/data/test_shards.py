"""Reading shards: every image once per epoch in an order of the seed, whatever reads them and whatever is broken."""

import json
import os
import pickle
import resource
import shutil
import signal
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from kept import assert_same, state
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from shrunk import BACKBONE
from tiny_shards import number, numbered, write_shards

from pmf_lightning import UserError, compose
from pmf_lightning.benchmark import benchmark
from pmf_lightning.config.compose import one_line
from pmf_lightning.data.datamodule import ImageData
from pmf_lightning.data.dataset import DataSource, FirstImages, ImageDataset
from pmf_lightning.data.loader import tally_of
from pmf_lightning.data.order import micro_batch_indices
from pmf_lightning.data.shards.bad_records import MOST_NAMED, BadRecord, BadRecordCounter
from pmf_lightning.data.shards.manifest import read_manifest
from pmf_lightning.data.shards.open_files import OpenFiles
from pmf_lightning.data.shards.payloads import encode
from pmf_lightning.data.shards.tar import Record, index_path, read_index, write_shard
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.profiling.benchmarks.reader import describe, make_originals
from pmf_lightning.train import train
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.rng import BatchRows

COUNT, PER_SHARD = 22, 8  # three shards of 8, 8 and 6
LABELS = np.arange(COUNT) % 3


composed = cache(lambda data: compose([f"data={data}"]))


def source(root, *overrides, data="shards"):
    return instantiate(OmegaConf.merge(composed(data), OmegaConf.from_dotlist([f"data.root={root}", *overrides])).data)


@pytest.fixture
def root(tmp_path):
    write_shards(tmp_path / "shards", numbered(COUNT), LABELS, PER_SHARD)
    return tmp_path / "shards"


def tar(root, shard=0):
    return root / f"shard-{shard:06d}.tar"


def spoil(root, *images):
    """Make some records unreadable, in place: their bytes stay as many."""
    for image in images:
        path = tar(root, image // PER_SHARD)
        content, index = bytearray(path.read_bytes()), read_index(path)
        place = index.keys.tolist().index(f"image{image}")
        content[index.offsets[place] : index.offsets[place] + 6] = b"broken"
        path.write_bytes(content)


@pytest.mark.parametrize("payload", ["npy", "png", "webp"])
def test_what_was_written_is_read(tmp_path, payload):
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    write_shards(tmp_path, images, labels, 4, payload)
    shards = source(tmp_path)
    assert isinstance(shards, DataSource)
    assert (shards.resolution, shards.channels, shards.classes, shards.latents) == (16, 3, 10, False)
    shards.check()
    train = shards.train()
    assert isinstance(train, ImageDataset)
    assert torch.equal(train.labels, torch.from_numpy(labels))
    asked = [7, 0, 9, 3, 0, -1]
    found, classes = train.batch(asked)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(images[asked]))
    assert classes.tolist() == labels[asked].tolist()
    found += 1  # the caller's own
    assert torch.equal(train.batch(asked)[0], torch.from_numpy(images[asked]))
    image, label = train[4]
    assert torch.equal(image, torch.from_numpy(images[4]))
    assert (label, type(label)) == (5, int)
    assert train.batch([])[0].shape == (0, 3, 16, 16)
    for beyond in (10, -11):
        with pytest.raises(IndexError, match="of 10"):
            train[beyond]


def test_latents_come_as_means_and_deviations(tmp_path):
    latents = np.random.default_rng(0).normal(size=(6, 2, 4, 8, 8)).astype(np.float32)
    write_shards(tmp_path, latents, np.arange(6) % 2, 4, autoencoder="some.safetensors")
    sizes = ["data.resolution=8", "data.classes=2"]
    shards = source(tmp_path, *sizes, data="imagenet256_latents")
    assert shards.latents
    shards.check()
    found, labels = shards.train().batch([5, 2])
    assert torch.equal(found, torch.from_numpy(latents[[5, 2]]))
    assert labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"data=shards needs pixels, data.root=.* holds latents: data=imagenet256_late"):
        source(tmp_path).check()


def test_latents_are_drawn_once_for_drifting(tmp_path):
    """By the number of the record: the same at every reading, in any order and split; iMF's stay moments."""
    moments = np.abs(np.random.default_rng(1).normal(size=(40, 2, 4, 8, 8))).astype(np.float32)
    write_shards(tmp_path, moments, np.arange(40) % 2, 4, autoencoder="some.safetensors")
    sizes = ["data.resolution=8", "data.classes=2"]
    once, every = (source(tmp_path, *sizes, data=f"imagenet256_latents{end}") for end in ("_scaled", ""))
    assert (once.draw, every.draw) == ("once", "every_time")
    images = once.train()
    first, again = images.batch([5, 2, 39])[0], images.batch([2, 39, 5])[0][[2, 0, 1]]
    assert torch.equal(first, again)
    assert torch.equal(first[:, 1], torch.zeros(3, 4, 8, 8))
    assert torch.equal(every.train().batch([5])[0][0], torch.from_numpy(moments[5]))
    e = (images.batch(range(40))[0][:, 0].numpy() - moments[:, 0]) / moments[:, 1]
    assert abs(e.mean()) < 0.03
    assert e.std() == pytest.approx(1, abs=0.03)
    assert np.abs(np.corrcoef(e.reshape(40, -1)) - np.eye(40)).max() < 0.35  # a draw of its own for every image
    part = source(tmp_path, *sizes, "data.held_out_fraction=0.25", data="imagenet256_latents_scaled").train()
    every_latent = images.batch(range(40))[0]
    assert all((latent == every_latent).flatten(1).all(1).any() for latent in part.batch(range(3))[0])
    assert once.fingerprint() != every.fingerprint()
    with pytest.raises(UserError, match=r"data\.draw=twice: latents are sampled every_time or once"):
        source(tmp_path, *sizes, "data.draw=twice", data="imagenet256_latents").check()


def test_shards_of_pixels_are_no_latents(root):
    with pytest.raises(UserError, match=r"data=imagenet256_latents needs latents.* holds pixels: data=shards"):
        source(root, data="imagenet256_latents").check()


def test_the_split_is_stratified_and_fixed(tmp_path):
    labels = np.array([0] * 40 + [1] * 10 + [2] * 30)
    write_shards(tmp_path, numbered(80), labels, 16)
    small, large = (source(tmp_path, f"data.held_out_fraction={share}") for share in (0.1, 0.5))
    held_out, train = (set(number(part.batch(range(len(part)))[0])) for part in (small.held_out(), small.train()))
    assert torch.bincount(small.held_out().labels).tolist() == [4, 1, 3]
    assert held_out | train == set(range(80))
    assert not held_out & train
    assert held_out < set(number(large.held_out().batch(range(40))[0]))
    fingerprints = {small.fingerprint(), large.fingerprint(), source(tmp_path).fingerprint()}
    assert len(fingerprints) == 3
    write_shards(tmp_path, numbered(80)[::-1], labels, 16)
    assert source(tmp_path).fingerprint() not in fingerprints


def test_nothing_held_out_is_said(root):
    with pytest.raises(UserError, match=r"data.held_out_fraction=0: no image of data=shards is held out"):
        source(root).held_out()
    with pytest.raises(
        UserError, match=r"data.held_out_fraction=0.01 of so few images selects none: set it above 0.06"
    ):
        source(root, "data.held_out_fraction=0.01").held_out()


@pytest.mark.parametrize("resolution", [64, 256, 512, 1024])
def test_imagenet_entries_want_shards_of_their_size(root, resolution):
    name = f"imagenet{resolution}"
    entry = instantiate(compose([f"data={name}"]).data)
    assert (entry.name, entry.resolution, entry.channels, entry.classes) == (name, resolution, 3, 1000)
    for use in ("check", "train", "held_out", "fingerprint"):
        with pytest.raises(UserError, match=f"data={name} needs its WebDataset shards: set data.root .*in=<images>"):
            getattr(entry, use)()
    sized = [f"data.resolution={resolution}, but .* have resolution=4: set data.resolution=4, or data.root to other"]
    with pytest.raises(UserError, match=sized[0]):
        source(root, data=name).check()
    with pytest.raises(UserError, match=r"data.channels=1, but .* channels=3"):
        source(root, "data.resolution=4", "data.channels=1", data=name).check()
    with pytest.raises(UserError, match=r"data.classes=1000, but .* classes=3"):
        source(root, "data.resolution=4", data=name).check()
    source(root, "data.resolution=4", "data.classes=3", data=name).check()


def test_shards_without_a_root_are_one_line(tmp_path):
    for overrides, words in (
        ([], "data=shards needs its WebDataset shards: set data.root"),
        ([f"data.root={tmp_path}"], f"data.root={tmp_path}: it holds no manifest.json"),
    ):
        with pytest.raises(OmegaConfBaseException) as refused:
            _ = compose(["data=shards", *overrides]).data.classes
        assert one_line(refused.value).startswith(words)


def _remove_tar(root):
    tar(root, 1).unlink()


def _lengthen_tar(root):
    tar(root, 1).write_bytes(tar(root, 1).read_bytes() + b"0" * 512)


def _remove_index(root):
    index_path(tar(root, 1)).unlink()


def _cut_index(root):
    index_path(tar(root, 1)).write_bytes(index_path(tar(root, 1)).read_bytes()[:200])


def _swap_index(root):
    index_path(tar(root, 2)).replace(index_path(tar(root, 1)))


def _stray_index(root):
    np.savez(
        index_path(tar(root, 1)),
        offsets=np.full(8, 10**6),
        sizes=np.full(8, 9),
        labels=LABELS[:8],
        keys=LABELS[:8].astype(str),
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove_tar, r"shard-000001.tar is missing"),
        (_lengthen_tar, r"shard-000001.tar has .* bytes, .* in the manifest: it belongs to other shards"),
        (_remove_index, r"shard-000001.index.npz cannot be read \(FileNotFoundError\)"),
        (_cut_index, r"shard-000001.index.npz cannot be read"),
        (_swap_index, r"shard-000001.index.npz does not fit the manifest \(8 records"),
        (_stray_index, r"shard-000001.index.npz does not fit the manifest"),
    ],
)
def test_damaged_folders_are_refused_before_any_work(root, damage, words):
    damage(root)
    with pytest.raises(UserError, match=words) as refused:
        source(root, "data.max_bad=0.99").check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["max_bad", "held_out_fraction"])
def test_shares_are_shares(root, key):
    for value in (-0.1, 1):
        with pytest.raises(UserError, match=f"data.{key}={value}: set it from 0 to below 1"):
            source(root, f"data.{key}={value}").check()


def test_no_images_at_all(tmp_path):
    write_shards(tmp_path, numbered(0), np.zeros(0, dtype=int), 8)
    with pytest.raises(UserError, match="these shards hold no image"):
        source(tmp_path).check()


# What training sees


BATCH = 12


def data(root, num_workers, *overrides, micro_batch=2, rank=0, world_size=1, step=0):
    made = ImageData(source(root, *overrides), seed=5, batch=BATCH, micro_batch=micro_batch, num_workers=num_workers)
    micro_batches = made.accumulation(world_size)
    made.trainer = SimpleNamespace(
        **{"world_size": world_size, "global_rank": rank, "global_step": step},
        accumulate_grad_batches=micro_batches,
    )
    return made


def seen(root, world_size, num_workers, first_step, last_step):
    """The image numbers of the global batches of some steps, put together from what each device loads."""
    steps = [[None] * BATCH for _ in range(first_step, last_step)]
    for rank in range(world_size):
        made = data(root, num_workers, rank=rank, world_size=world_size, step=first_step)
        micro_batches, stream = made.accumulation(world_size), iter(made.train_dataloader())
        for step in steps:
            for j in range(micro_batches):
                images, labels = next(stream)
                assert images.dtype == torch.uint8
                assert torch.equal(labels, torch.tensor(number(images)) % 3)
                rows = BatchRows(j * world_size + rank, micro_batches * world_size).rows(len(images)).tolist()
                assert all(step[row] is None for row in rows)
                for row, image in zip(rows, number(images), strict=True):
                    step[row] = image
    return steps


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_devices_and_workers_see_the_same_images(root, world_size, num_workers):
    """Three shards are fewer than the six loading processes of three devices."""
    straight = [micro_batch_indices(COUNT, BATCH, 5, step, BatchRows()) for step in range(6)]
    assert seen(root, world_size, num_workers, 0, 4) == straight[:4]
    assert seen(root, world_size, num_workers, 4, 6) == straight[4:]  # resumed, by devices and workers of any number


def test_two_devices_share_every_epoch_without_overlap(tmp_path):
    write_shards(tmp_path, numbered(2 * BATCH), np.arange(2 * BATCH) % 3, 5)
    for epoch in range(3):
        parts = []
        for rank in range(2):
            made = data(tmp_path, 2, rank=rank, world_size=2, step=2 * epoch, micro_batch=None)
            stream = iter(made.train_dataloader())
            parts.append([image for _ in range(2) for image in number(next(stream)[0])])
        assert len(parts[0]) == len(parts[1]) == BATCH
        assert not set(parts[0]) & set(parts[1])
        assert sorted(parts[0] + parts[1]) == list(range(2 * BATCH))


def test_a_process_that_starts_from_nothing_reads_the_same(root):
    """What spawned workers get: no descriptor travels."""
    train = source(root).train()
    before = train.batch(range(COUNT))
    again = pickle.loads(pickle.dumps(train))
    assert not again._files._open
    assert torch.equal(again.batch(range(COUNT))[0], before[0])


# What is broken


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_record_is_replaced_counted_and_named_once(root, num_workers, capsys):
    images = source(root).train()
    (stand_in,) = number(images.batch([(9 + images.stride) % COUNT])[0])
    spoil(root, 9, 17)
    for _ in range(2):  # another process finds the same
        made = data(root, num_workers, "data.max_bad=0.2", micro_batch=None)
        stream = iter(made.train_dataloader())
        shown = []
        for _ in range(5):
            batch, labels = next(stream)
            assert torch.equal(labels, torch.tensor(number(batch)) % 3)  # a stand-in brings its own label
            shown += number(batch)
        wanted = [i for step in range(5) for i in micro_batch_indices(COUNT, BATCH, 5, step, BatchRows())]
        replaced = {asked: got for asked, got in zip(wanted, shown, strict=True) if asked != got}
        assert set(replaced) == {9, 17}
        assert replaced[9] == stand_in
        assert made.tally.different == 2
        assert made.tally.count == sum(asked in (9, 17) for asked in wanted) == 6
        made.teardown("fit")
        output = capsys.readouterr().out
        assert output.count(f"cannot read image9 of {tar(root, 1)} (") == 1
        assert output.count(f"cannot read image17 of {tar(root, 2)} (") == 1
        assert "2 of 22 records could not be read" in output


def test_the_first_images_are_replaced_by_one_another(root, capsys):
    """train_images= of shards: bad records are counted by their caller, and no later image comes in."""
    spoil(root, 3)
    first = FirstImages(source(root, "data.max_bad=0.2"), 5).train()
    images, labels, bad = first.fetch(range(5))
    assert [record for record, _ in bad] == [3]
    assert set(number(images)) == {0, 1, 2, 4}
    assert torch.equal(labels, torch.tensor(number(images)) % 3)
    assert tally_of(first, 1) is not None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_records_end_the_run(root, num_workers):
    spoil(root, *range(9))
    made = data(root, num_workers, "data.max_bad=0.1", micro_batch=None)
    with pytest.raises(UserError, match=r"7 of 22 records cannot .*image\d of .*max_bad=0.1 .*verify=true") as refused:
        for _ in zip(range(5), made.train_dataloader(), strict=False):
            pass
    assert "\n" not in str(refused.value)


def test_whoever_asks_for_single_images_counts_too(root, capsys):
    spoil(root, 3, 4)
    images = source(root, "data.max_bad=0.04").train()
    _ = images[3]
    _ = images[5]
    assert "image3" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"2 of 22 records cannot be read so far"):
        images.batch([4])
    with pytest.raises(UserError, match=r"1 of 22 records cannot be read so far"):
        _ = source(root, "data.max_bad=0").train()[3]


def test_a_stand_in_comes_from_the_same_split(root):
    share = "data.held_out_fraction=0.5"
    held_out = source(root, share).held_out()
    members = set(number(held_out.batch(range(len(held_out)))[0]))
    assert len(members) < COUNT
    first, *rest = sorted(members)
    spoil(root, *rest)
    assert number(source(root, share, "data.max_bad=0.9").held_out().batch([len(members) - 1])[0]) == [first]
    spoil(root, first)
    with pytest.raises(
        UserError, match=r"\d+ records in a row, .* cannot be read, the last is image\d+ of .*verify=true"
    ):
        source(root, share, "data.max_bad=0.9").held_out().batch([0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_that_are_all_bad_end_the_run_in_one_line(root, num_workers):
    spoil(root, *range(COUNT))
    with pytest.raises(UserError, match=r"^3 records in a row, each the replacement .* the last is image") as refused:
        next(iter(data(root, num_workers).train_dataloader()))
    assert "\n" not in str(refused.value)


def test_a_record_of_another_size_is_bad(root):
    images = numbered(COUNT)
    records = [Record(f"image{i}", i % 3, encode(images[i, :, : 3 + (i != 2)], "npy"), "npy") for i in range(PER_SHARD)]
    entry = write_shard(tar(root), records)
    manifest = read_manifest(root)
    replace(manifest, shards=[entry, *manifest.shards[1:]]).write(root)
    _, _, bad = source(root).train().fetch(range(COUNT))
    assert bad == [BadRecord(2, "torch.uint8 [3, 3, 4] instead of [3, 4, 4]")]


def test_a_truncated_shard_is_named_and_its_records_are_replaced(root):
    path = tar(root, 1)
    index = read_index(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: index.offsets[5] + 3])  # three of eight records are lost, one of them in part
    shards = source(root, "data.max_bad=0.15")
    with pytest.warns(UserWarning, match=r"1 of 3 shards in .* truncated, 3 records lost: shard-000001.tar \(3\)"):
        shards.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = shards.train()  # said once
    found, labels, bad = images.fetch(range(COUNT))
    shown = number(found)
    assert [i for i in range(COUNT) if shown[i] != i] == [13, 14, 15]
    assert len({shown[13], shown[14], shown[15]}) == 3, "neighbours get different stand-ins"
    assert labels.tolist() == [i % 3 for i in shown]
    assert [record for record, _ in bad] == [13, 14, 15]
    with pytest.raises(UserError, match=r"3 records lost, more than data.max_bad=0.05: shard-000001.*verify=true"):
        source(root, "data.max_bad=0.05").check()


def test_a_shard_cut_while_it_is_open_is_no_crash(root):
    images = source(root, "data.max_bad=0.2").train()
    assert number(images.batch([7])[0]) == [7]
    tar(root).write_bytes(tar(root).read_bytes()[: read_index(tar(root)).offsets[7] + 3])
    (found,) = number(images.batch([7])[0])
    assert found == (7 + images.stride) % COUNT
    assert images.tally.different == 1


def test_the_count_is_judged_by_what_was_read():
    def tally(max_bad, processes=1):
        return BadRecordCounter(1000, max_bad, lambda record: f"record {record}", "look at it", processes)

    borne = tally(0.01)
    borne.note([BadRecord(i, "x") for i in range(10)], 10)  # ten of the first ten, but one in a hundred of an epoch
    with pytest.raises(UserError, match="11 of 1000"):
        borne.note([BadRecord(10, "x")], 1)
    borne = tally(0.01)
    for epoch in range(50):  # the same ones in every epoch are no more
        borne.note([BadRecord(i, "x") for i in range(10)], 1000)
        assert (borne.different, borne.count) == (10, 10 * (epoch + 1))
    share = tally(0.01, processes=4)  # a quarter of an epoch each
    share.note([BadRecord(i, "x") for i in range(3)], 10)
    with pytest.raises(UserError, match="4 of 1000"):
        share.note([BadRecord(3, "x")], 1)
    tally(0).note([], 5)


def test_long_lists_of_bad_records_are_cut_short(capsys):
    tally = BadRecordCounter(1000, 0.5, lambda record: f"record {record}", "look at it")
    tally.note([BadRecord(i, "x") for i in range(100)] * 2, 100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MOST_NAMED
    assert "only counted" in lines[-1]
    tally.report()
    assert "100 of 1000 records could not be read" in capsys.readouterr().out
    BadRecordCounter(1000, 0.5, str, "look at it").report()
    assert not capsys.readouterr().out


# Files


def test_few_files_are_open_at_once(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(9)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 10 + b"end")
    files = OpenFiles(paths, most_open=3)
    begun = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    for i in [*range(9), 8, 2, 8, 0, 8]:
        files.announce([(i, 0, 5)])
        assert files.read(i, 8, 4) == bytes([i]) * 2 + b"en"
        assert len(files._open) <= 3
    assert files.read(4, 11, 100) == b"nd"  # fewer at the end
    assert files.read(4, 100, 5) == b""
    if begun is not None:
        assert len(set(os.listdir("/proc/self/fd")) - begun) == 3
    os.close(files._open[4])  # as a network file system lets go of a file
    assert files.read(4, 0, 1) == b"\x04"
    files.close()
    assert not files._open
    paths[5].unlink()
    files.announce([(5, 0, 5)])
    with pytest.raises(FileNotFoundError):
        files.read(5, 0, 5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_memory_is_flat_over_20_000_records(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    shape = (3, 32, 32)
    write_shards(tmp_path, numbered(1000, shape), np.arange(1000) % 10, 125)
    made = ImageData(source(tmp_path), seed=0, batch=100, micro_batch=None, num_workers=0)
    made.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0, accumulate_grad_batches=1)
    stream = iter(made.train_dataloader())
    after = []
    for step in range(200):
        next(stream)
        if step % 10 == 9:
            after.append(resident())
    assert made.tally.read == 20_000
    growth = max(after[2:]) - after[1]  # over 18,000 records, that is 55 MB of images
    assert growth < 5e6


# Training

RUN = [
    *BACKBONE,
    *("model=pmf_tiny", "data=shards", "data.max_bad=0.2", "batch=16", "images=320", "num_workers=2"),
    *("log_every_steps=1", "sample_grid.enabled=false", "checkpoint.every_images=160", "metrics=none"),
]


def run(folder, root, *overrides):
    return train(compose([*RUN, f"data.root={root}", f"run_dir={folder}", *overrides]))


def kill_after_ten_steps(folder, root):
    """Kill the run, its workers too, in step 13; the checkpoint is that of step 10."""
    overrides = [*RUN, f"data.root={root}", f"run_dir={folder}"]
    forked.run(overrides, folder.with_name("said.txt"), ("faults:kill_all_before", 13), code=-signal.SIGKILL)
    assert read_checkpoint(folder)["global_step"] == 10


@pytest.mark.slow
def test_twenty_steps_are_ten_a_kill_and_ten_more(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 16, 16), dtype=np.uint8)
    write_shards(tmp_path / "shards", images, np.arange(50) % 5, 17, "png")
    assert run(tmp_path / "straight", tmp_path / "shards")["steps"] == 20
    kill_after_ten_steps(tmp_path / "killed", tmp_path / "shards")
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    wanted = state(tmp_path / "straight")
    for name, changes in (("killed", []), ("other", ["num_workers=0"])):
        run(tmp_path / name, tmp_path / "shards", "ckpt=last", *changes)
        assert_same(state(tmp_path / name), wanted)


def test_a_run_with_a_bad_record_says_so(tmp_path, capsys):
    write_shards(tmp_path / "shards", numbered(24, (1, 16, 16)), np.arange(24) % 2, PER_SHARD)
    spoil(tmp_path / "shards", 5)
    run(tmp_path / "run", tmp_path / "shards", "images=32")
    output = capsys.readouterr().out
    assert output.count("cannot read image5 of") == 1
    assert "1 of 24 records could not be read" in output


# Speed


def test_the_reader_is_measured_beside_cropped_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    write_shards(tmp_path / "shards", images, np.arange(24) % 2, 9)
    make_originals(tmp_path / "originals", 6)
    with Image.open(tmp_path / "originals" / "class1" / "000003.jpg") as original:
        assert (original.format, original.size) == ("JPEG", (500, 375))
    where = [f"data.root={tmp_path / 'shards'}", f"reader.originals={tmp_path / 'originals'}", "repeats=2"]
    small = ["what=data", "data=shards", "reader.images=8", "reader.batch=4", f"out={tmp_path / 'speed.json'}"]
    result = benchmark(compose([*small, *where], "benchmark"))
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    assert set(result["by_workers"]) == {"0", "2"}
    for numbers in result["by_workers"].values():
        assert 0 < numbers["ratio_min"] <= numbers["ratio"] <= numbers["ratio_max"]
        assert min(numbers["shards"], numbers["files"]) > 0
    assert result["by_workers"]["0"]["ratio_max"] > 1  # 3 kB as they are, beside files to be decoded and cropped
    share = result["share_of_time"]
    assert 0 < share["shards_decoding"] < 1
    assert 0.5 < share["files_decoding"] + share["files_cropping"] < 1
    assert result["bytes_per_record"] == 3 * 32 * 32 + 128
    words = describe(result)
    assert "2 loading processes" in words
    assert f"decoding takes {share['shards_decoding']:.0%} of reading shards" in words


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reader.batch=0"], "reader.batch=0: set it to an integer, 1 or more"),
        (["reader.num_workers=[]"], r"reader.num_workers=\[\]: give a list in square brackets"),
        (["reader.originals=nowhere"], "reader.originals=nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        benchmark(compose(["what=data", *overrides], "benchmark"))
