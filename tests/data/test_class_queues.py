"""Queues of real images: their size, what they hold, what they hand out, and how they come back."""

from collections import Counter

import numpy as np
import pytest
import torch

from pmf_lightning import UserError
from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.data.queues import queue_sizes, ring_buffer
from pmf_lightning.data.queues.class_queues import ClassQueues, choose
from pmf_lightning.data.queues.queue_sizes import QueueSizes, check_room
from pmf_lightning.utils import free_space, rng

SHAPE, CLASSES, IMAGES = (2, 3, 3), 4, 60
SIZES = QueueSizes(classes=CLASSES, per_class=5, global_size=12, shape=SHAPE)
OFFICIAL = QueueSizes(classes=1000, per_class=128, global_size=1000, shape=(3, 256, 256))


@pytest.fixture(scope="module")
def data():
    """Image i shows the number i; its class is i modulo 3, so class 3 has none."""
    numbers = torch.arange(IMAGES)
    return ArrayDataset(numbers.to(torch.uint8)[:, None, None, None].expand(-1, *SHAPE).contiguous(), numbers % 3)


@pytest.fixture(params=["memory", "file"])
def queues(request, tmp_path):
    return ClassQueues(SIZES, None if request.param == "memory" else tmp_path)


def push(queues, data, indices):
    images, labels = data.batch(indices)
    queues.push(images, labels, indices)


def numbers(images):
    """What the images show; all of their pixels say the same."""
    assert images.dtype == torch.uint8
    flat = images.flatten(-3)
    assert (flat == flat[..., :1]).all()
    return flat[..., 0].tolist()


def rows(*places):
    return torch.tensor(places)


# Size


def test_the_official_pixel_setting_needs_25_gigabytes():
    assert OFFICIAL.bytes == 1000 * 128 * 3 * 256 * 256 + 1000 * 3 * 256 * 256 == 25_362_432_000
    assert "1000 classes x 128 + 1000 of any class, 3x256x256 uint8: 25.4 GB in memory" in OFFICIAL.report()


def test_sizes_are_what_is_allocated(queues):
    assert queues.by_class.images.nbytes + queues.any_class.images.nbytes == SIZES.bytes
    assert queues.by_class.images.shape == (CLASSES, 5, *SHAPE)
    assert SIZES.images == CLASSES * 5 + 12


def test_the_size_is_said_before_anything_is_made(capsys, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(ring_buffer, "_zeros", lambda *arguments: made.append(capsys.readouterr().out) or np.zeros(1))
    ClassQueues(SIZES, tmp_path)
    assert "4 classes x 5 + 12 of any class" in made[0]
    assert f"in a file under {tmp_path}" in made[0]


@pytest.mark.parametrize("copies", [1, 3])
def test_queues_larger_than_memory_are_refused_before_allocation(monkeypatch, copies):
    monkeypatch.setattr(queue_sizes, "free_memory", lambda: copies * 25_000_000_000)
    monkeypatch.setattr(ring_buffer, "_zeros", lambda *_: pytest.fail("allocated"))
    with pytest.raises(UserError) as caught:
        ClassQueues(OFFICIAL, copies=copies)
    for words in (
        "25.4 GB in memory",
        f"{25 * copies}.0 GB free",
        "per_class=128",
        "global_size=1000",
        "on disk",
        "0.2 MB",
    ):
        assert words in str(caught.value)
    assert (f"{copies} processes x" in str(caught.value)) == (copies > 1)
    monkeypatch.setattr(queue_sizes, "free_memory", lambda: copies * 26_000_000_000)
    check_room(OFFICIAL, copies=copies)


def test_queues_larger_than_the_disk_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(queue_sizes, "free_memory", lambda: 0)  # is not asked for
    monkeypatch.setattr(queue_sizes, "free_disk", lambda folder: 10_000_000_000)
    with pytest.raises(UserError, match=r"25\.4 GB in a file under .*10\.0 GB free.*larger disk"):
        ClassQueues(OFFICIAL, tmp_path)
    assert list(tmp_path.iterdir()) == []
    check_room(SIZES, tmp_path)


def test_free_memory_is_the_least_of_machine_and_container(monkeypatch, tmp_path):
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:       2000 kB\nMemAvailable:       1000 kB\nHugetlb:   0\n")
    monkeypatch.setattr(free_space, "MACHINE_MEMORY", machine)
    monkeypatch.setattr(free_space, "GROUP_MEMORY", tmp_path)
    assert free_space.free_memory() == 1_024_000
    (tmp_path / "memory.current").write_text("100300\n")  # nearly all of it are shards that were read
    (tmp_path / "memory.stat").write_text("anon 300\nfile 100000\ninactive_file 60000\nactive_file 40000\n")
    for limit, expected in (("max\n", 1_024_000), ("1000\n", 700), ("200\n", 0), ("9999999\n", 1_024_000)):
        (tmp_path / "memory.max").write_text(limit)
        assert free_space.free_memory() == expected
    machine.unlink()
    assert free_space.free_memory() >= 0


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert free_space.free_disk(tmp_path / "a" / "b") == pytest.approx(free_space.free_disk(tmp_path), rel=0.1)


def test_the_file_ends_with_its_queues(data, tmp_path):
    queues = ClassQueues(SIZES, tmp_path / "new")
    assert isinstance(queues.by_class.images, np.memmap)
    push(queues, data, [4, 7])
    assert list((tmp_path / "new").iterdir()) == []  # it has no name
    assert numbers(queues.positives(rows(1), rows(0), 2, 0, 0))[0] in ([4, 7], [7, 4])


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match="folder of the queues=/proc/nowhere"):
        ring_buffer._zeros((2, 3, *SHAPE), free_space.Path("/proc/nowhere"))


@pytest.mark.parametrize("name", ["classes", "per_class", "global_size"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"{name}=0"):
        QueueSizes(**{"classes": 2, "per_class": 2, "global_size": 2, "shape": SHAPE, name: 0})


# What they hold


def test_the_newest_images_stay(queues, data):
    push(queues, data, list(range(20)))
    push(queues, data, list(range(20, 45)))
    for label in range(3):
        held = sorted(queues.by_class.indices[label].tolist())
        assert held == [i for i in range(45) if i % 3 == label][-5:]
    assert sorted(queues.any_class.indices[0].tolist()) == list(range(45 - 12, 45))
    for rings in (queues.by_class, queues.any_class):
        filled = rings.indices >= 0
        assert (rings.images[filled] == rings.indices[filled][:, None, None, None]).all()
    assert queues.by_class.filled.tolist() == [5, 5, 5, 0]


def test_one_batch_may_overfill_a_ring(queues, data):
    push(queues, data, [0, 3, 6, 9, 12, 15, 18, 21])
    assert sorted(queues.by_class.indices[0].tolist()) == [9, 12, 15, 18, 21]


@pytest.mark.parametrize(
    ("images", "labels", "indices", "words"),
    [
        (torch.zeros(2, *SHAPE), [0, 1], [5], "2 images, 2 labels, 1 indices"),
        (torch.zeros(1, 2, 3, 4), [0], [5], r"\(2, 3, 4\) in queues of \(2, 3, 3\)"),
        (torch.zeros(1, *SHAPE), [4], [5], "labels 4 to 4.*0 to 3"),
        (torch.zeros(1, *SHAPE), [-1], [5], "labels -1"),
    ],
)
def test_what_does_not_belong_is_refused(queues, images, labels, indices, words):
    with pytest.raises(ValueError, match=words):
        queues.push(images.to(torch.uint8), torch.tensor(labels), indices)
    assert queues.any_class.filled.tolist() == [0]


# What they hand out


def test_without_replacement_where_there_are_enough(queues, data):
    push(queues, data, list(range(30)))
    for step in range(20):
        for row in numbers(queues.positives(rows(0, 1, 2, 1), rows(0, 1, 2, 3), 5, 0, step)):
            assert len(set(row)) == 5
            assert len({number % 3 for number in row}) == 1
        for row in numbers(queues.negatives(rows(0, 1), 12, 0, step)):
            assert sorted(row) == list(range(18, 30))


def test_with_replacement_where_there_are_too_few_and_never_an_empty_row(queues, data):
    push(queues, data, [1, 4, 2])
    seen = Counter()
    for step in range(50):
        (row,) = numbers(queues.positives(rows(1), rows(0), 5, 0, step))
        assert set(row) <= {1, 4}
        seen.update(row)
        assert numbers(queues.positives(rows(2), rows(0), 5, 0, step)) == [[2] * 5]
        (row,) = numbers(queues.negatives(rows(0), 12, 0, step))
        assert set(row) <= {1, 2, 4}
    assert 75 < seen[1] < 175


def test_rows_depend_on_seed_step_and_place_alone(queues, data):
    push(queues, data, list(range(40)))
    labels, places = rows(0, 1, 2, 0, 1, 2, 0), torch.arange(7)
    whole = queues.positives(labels, places, 3, 0, 5)
    for shard in range(2):
        share = slice(shard, None, 2)
        assert torch.equal(queues.positives(labels[share], places[share], 3, 0, 5), whole[share])
    assert numbers(whole)[0] != numbers(whole)[3]
    for seed, step in ((1, 5), (0, 6)):
        assert not torch.equal(queues.positives(labels, places, 3, seed, step), whole)
    negatives = queues.negatives(places, 4, 0, 5)
    assert negatives.shape == (7, 4, *SHAPE)
    assert torch.equal(queues.negatives(places[2:4], 4, 0, 5), negatives[2:4])
    assert queues.positives(labels[:0], places[:0], 3, 0, 5).shape == (0, 3, *SHAPE)


def test_what_is_handed_out_is_a_copy(queues, data):
    push(queues, data, [1, 4, 7])
    queues.positives(rows(1), rows(0), 3, 0, 0).zero_()
    assert sorted(numbers(queues.positives(rows(1), rows(0), 3, 0, 0))[0]) == [1, 4, 7]


def test_every_choice_is_equally_likely():
    uniform = rng.uniform("tests", count=3000 * 4).view(3000, 4)
    pairs = Counter(map(tuple, choose(uniform, torch.full((3000,), 4), 2).tolist()))
    assert len(pairs) == 12
    assert all(abs(count - 250) < 5 * 250**0.5 for count in pairs.values())
    few = Counter(map(tuple, choose(uniform, torch.full((3000,), 3), 4)[:, :2].tolist()))
    assert len(few) == 9
    assert all(abs(count - 3000 / 9) < 5 * (3000 / 9) ** 0.5 for count in few.values())


def test_empty_classes_are_named(queues, data):
    with pytest.raises(UserError, match="no image has been queued"):
        queues.negatives(rows(0), 1, 0, 0)
    push(queues, data, [0, 1, 2])
    with pytest.raises(UserError, match="no image of class 3 has been queued: push some first"):
        queues.positives(rows(0, 3, 1, 3), rows(0, 1, 2, 3), 1, 0, 0)


# How they come back


def test_a_resumed_queue_is_the_same(queues, data, tmp_path):
    push(queues, data, list(range(0, 40, 2)))
    push(queues, data, [1, 50, 3])
    torch.save(queues.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    back = ClassQueues(SIZES)
    push(back, data, [11, 5, 7, 8])  # leaves no trace
    back.load_state_dict(state, data.batch)
    for later in ([], [9, 20], list(range(41, 60))):
        for mine in (queues, back):
            push(mine, data, later)
        for name in ("by_class", "any_class"):
            a, b = getattr(queues, name), getattr(back, name)
            for part in ("indices", "filled", "next"):
                assert np.array_equal(getattr(a, part), getattr(b, part))
            assert np.array_equal(a.images[a.indices >= 0], b.images[b.indices >= 0])
        labels, places = rows(0, 2, 1), rows(0, 1, 2)
        for step in range(3):
            assert torch.equal(queues.positives(labels, places, 5, 0, step), back.positives(labels, places, 5, 0, step))
            assert torch.equal(queues.negatives(places, 7, 0, step), back.negatives(places, 7, 0, step))


def test_a_state_does_not_change_with_its_queue(queues, data):
    push(queues, data, [0, 1, 2])
    state = queues.state_dict()
    before = state["any_class"]["indices"].clone()
    push(queues, data, [3, 4, 5])
    assert torch.equal(state["any_class"]["indices"], before)


def test_the_official_state_fits_a_checkpoint():
    queues = ClassQueues(QueueSizes(1000, 128, 1000, (1, 1, 1)))
    size = sum(values.nbytes for part in queues.state_dict().values() for values in part.values())
    assert size < 1.1e6


def test_many_images_are_fetched_some_at_a_time():
    numbers = torch.arange(700)
    many = ArrayDataset((numbers % 256).to(torch.uint8)[:, None, None, None], numbers % 2)
    sizes = QueueSizes(2, 300, 40, (1, 1, 1))
    queues, back, calls = ClassQueues(sizes), ClassQueues(sizes), []
    push(queues, many, list(range(700)))

    def fetch(indices):
        calls.append(len(indices))
        return many.batch(indices)

    back.load_state_dict(queues.state_dict(), fetch)
    assert max(calls) <= ring_buffer.CHUNK
    assert sum(calls) == 640
    assert np.array_equal(back.by_class.images, queues.by_class.images)


@pytest.mark.parametrize("change", ["classes", "size", "labels", "fewer", "shape"])
def test_another_run_or_data_set_is_refused(queues, data, change):
    push(queues, data, list(range(30)))
    sizes, other = SIZES, data
    if change in ("classes", "size"):
        sizes = QueueSizes(CLASSES + (change == "classes"), 5, 12 + (change == "size"), SHAPE)
    if change == "labels":
        other = ArrayDataset(data.images, (data.labels + 1) % 3)
    if change == "fewer":
        other = ArrayDataset(data.images[:20], data.labels[:20])
    if change == "shape":
        other = ArrayDataset(data.images[:, :1], data.labels)
    words = {
        "classes": "checkpoint has 4 x 5 slots, this run 5 x 5",
        "size": "queue of any class: the checkpoint has 1 x 12 slots, this run 1 x 13",
        "labels": "image 15 as class 0, this data set as class 1",
        "fewer": "images up to 29",
        "shape": r"images of \(2, 3, 3\), this data set \(1, 3, 3\)",
    }
    with pytest.raises(UserError, match=words[change]):
        ClassQueues(sizes).load_state_dict(queues.state_dict(), other.batch)
