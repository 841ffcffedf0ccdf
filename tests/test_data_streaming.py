"""Streams: every image once an epoch, divided over processes and workers, continued to the image from any batch."""

import io
import itertools
import json
import tarfile
from collections import Counter

import datasets
import pytest
from PIL import Image

from energy_transformer.data import ImageStream, StreamLoader, load_image_datasets
from energy_transformer.data.demo import photograph
from energy_transformer.data.division import Place
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.utils.errors import UserError

PROCESSOR = build_image_processor((8, 8))
SHARD = 25  # rows


COFFEE = photograph("coffee.png")[:8, :8]


def png(number):
    """An image of 8×8 pixels that carries its number in its first pixels."""
    pixels = COFFEE.copy()
    pixels[0, 0] = number // 256, number % 256, 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(batch):
    first = batch["image"][:, :, 0, 0].long()
    return (first[:, 0] * 256 + first[:, 1]).tolist()


def write_shards(folder, num_shards, broken=(), rows=SHARD, group=10):
    """Parquet shards with images 0, 1, … in their order, and their number as the label."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for shard in range(num_shards):
        own = range(shard * rows, (shard + 1) * rows)
        images = [{"bytes": b"no image" if n in broken else png(n), "path": f"{n}.png"} for n in own]
        data = datasets.Dataset.from_dict({"image": images, "label": list(own)}, features=features)
        data.to_parquet(folder / f"{shard:05}.parquet", batch_size=group)
    return folder


def open_stream(folder):
    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def loader(stream, num_workers=0, process=0, num_processes=1, batch_size=5, **options):
    options = {"buffer_size": 12, "label_column": "label", **options}
    images = ImageStream(
        stream, "image", PROCESSOR, batch_size, process=process, num_processes=num_processes, **options
    )
    return StreamLoader(images, num_workers)


def take_each(source, count):
    return (numbers(batch) for batch in itertools.islice(source, count))


def take(source, count):
    return list(take_each(source, count))


def take_numbers(source, count):
    return list(itertools.chain.from_iterable(take(source, count)))


def with_epochs(source, count):
    """Images of a loader of batches of one, each with the epoch in which its reader is."""
    for batch in itertools.islice(source, count):
        place = source.state_dict()["places"][source._worker - 1]  # of the one that has made the batch
        yield place["epoch"], *numbers(batch)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("stream") / "shards", 4)


class CountingStream(ImageStream):
    """Knows how many rows have been read."""

    rows_read = 0

    def _read(self, piece, first_row):
        for row in super()._read(piece, first_row):
            self.rows_read += 1
            yield row


def read_epochs(folder, num_processes, num_workers, epochs=2):
    """The numbers of the images that each reader uses in each epoch, and how many rows were read for them."""
    used, read = [[] for _ in range(epochs)], 0
    for process in range(num_processes):
        images = CountingStream(
            open_stream(folder), "image", PROCESSOR, 1, "label", process=process, num_processes=num_processes
        )
        workers = max(images.divide(num_workers), 1)
        for worker in range(workers):
            for epoch in range(epochs):
                rows = images._rows(Place(epoch), process * workers + worker)
                used[epoch].extend(row["label"] for _, row in rows)
        read += images.rows_read
    return used, read


READERS = [(1, 0), (2, 2), (8, 12), (32, 12)]


@pytest.mark.parametrize(("num_processes", "num_workers"), READERS)
def test_every_row_is_read_once(many_groups, num_processes, num_workers):
    """20 files of 20 row groups, as many as the most readers and some more: 400 for 384."""
    epochs, read = read_epochs(many_groups, num_processes, num_workers)
    assert [sorted(epoch) for epoch in epochs] == [list(range(1200))] * 2
    assert epochs[0] != epochs[1]
    assert read <= 1.05 * sum(map(len, epochs))


@pytest.fixture(scope="module")
def many_groups(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("groups") / "shards", 20, rows=60, group=3)


@pytest.mark.parametrize(
    ("num_processes", "num_workers", "workers", "factor", "told"),
    [
        (2, 4, 2, 1, "4 shards are for 2 reading workers of a process"),
        (4, 2, 1, 1, "4 shards are for 1 reading workers of a process"),
        (3, 0, 0, 1, None),
        (8, 0, 0, 2, "4 shards for 8 processes: each row is read 2 times"),
        (8, 3, 1, 2, "4 shards are for 1 reading workers of a process"),
    ],
)
def test_fewer_shards_than_readers(tmp_path, num_processes, num_workers, workers, factor, told, caplog):
    """Without row groups to divide: fewer workers read, and what is read in vain is told."""
    folder = write_shards(tmp_path / "s", 4, group=SHARD)
    images = ImageStream(open_stream(folder), "image", PROCESSOR, 1, num_processes=num_processes)
    assert images.divide(num_workers) == workers
    assert (told in caplog.text) if told else not caplog.text
    epochs, read = read_epochs(folder, num_processes, num_workers)
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 2
    assert read == factor * 200


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (2, 0), (1, 2), (2, 2), (3, 0), (1, 3)])
def test_every_image_comes_once_an_epoch(shards, num_processes, num_workers):
    """Through loaders and their workers; an image is of the epoch in which its reader is."""
    epochs = {}
    for process in range(num_processes):
        source = loader(open_stream(shards), num_workers, process, num_processes, batch_size=1)
        for epoch, number in with_epochs(source, 300):
            epochs.setdefault(epoch, []).append(number)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_continues_to_the_image(shards, num_workers):
    """In an epoch, over its end, in the second and over its end, while workers have read ahead."""
    whole = take(loader(open_stream(shards), num_workers), 50)
    running = loader(open_stream(shards), num_workers)
    states = [running.state_dict()]
    for _ in itertools.islice(running, 45):
        states.append(running.state_dict())
    for position in (1, 20, 45) if num_workers else (0, 1, 2, 3, 7, 19, 20, 21, 33, 44, 45):
        resumed = loader(open_stream(shards), num_workers)
        resumed.load_state_dict([states[position]])
        assert take(resumed, 4) == whole[position : position + 4], position


@pytest.mark.parametrize("process", [0, 1, 2])
def test_continues_where_shards_are_shared(shards, process):
    whole = take(loader(open_stream(shards), process=process, num_processes=3), 20)
    running = [loader(open_stream(shards), process=number, num_processes=3) for number in range(3)]
    for position, _ in enumerate(itertools.islice(zip(*running, strict=True), 15), start=1):
        if position % 3:
            continue
        resumed = loader(open_stream(shards), process=process, num_processes=3)
        resumed.load_state_dict([source.state_dict() for source in running])
        assert take(resumed, 3) == whole[position : position + 3]


def assert_epochs(seen, rows, complete):
    """In the complete epochs each row came once, and in the following ones none twice."""
    epochs = {}
    for epoch, number in seen:
        epochs.setdefault(epoch, []).append(number)
    assert [sorted(epochs[epoch]) for epoch in range(complete)] == [list(rows)] * complete
    assert all(len(numbers) == len(set(numbers)) for numbers in epochs.values())


CHANGES = [
    [(1, 0), (2, 0)], [(2, 0), (1, 0)], [(2, 2), (4, 1)], [(4, 1), (2, 2)], [(3, 0), (1, 2)], [(2, 3), (3, 3), (1, 0)],
    [(1, 0), (5, 2), (3, 0), (8, 12)],
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_other_readers_use_what_is_left_of_an_epoch(shards, changes, steps):
    """The readers of all processes in this one, as 4 files or 12 row groups are divided over them. Each uses some more
    images than the one before it, as if some were slower; the last ones go on to the end of the third epoch."""
    places, seen, old = None, [], None
    for num_processes, num_workers in changes:
        streams = [
            ImageStream(open_stream(shards), "image", PROCESSOR, 1, "label", 12, process=i, num_processes=num_processes)
            for i in range(num_processes)
        ]
        per_process = [max(images.divide(num_workers), 1) for images in streams].pop()
        division, count = streams[0].division, num_processes * per_process
        if old:
            state = json.loads(json.dumps(old.state_dict(min(place.epoch for place in places))))
            division, places = division.continued(type(old).restored([state]), places)
        places = places or [Place()] * count
        is_last = (num_processes, num_workers) == changes[-1]
        for reader in range(count):
            images = streams[reader // per_process]
            images.begin(division, [], 0)
            rows = images._shuffled(places[reader], reader)
            for place, row in itertools.islice(rows, 400 if is_last else (steps + reader) // count + reader % 2):
                seen.append((place.epoch, row["label"]))
                places[reader] = place
        old = division
    assert_epochs(seen, range(100), 3)


@pytest.mark.parametrize("changes", [[(1, 0), (2, 0), (1, 2)], [(2, 2), (1, 4), (3, 0)]], ids=str)
def test_loaders_go_on_with_what_is_left_of_an_epoch(tmp_path, changes):
    """With their own workers and with broken images, from the states as they are in files."""
    broken, states, seen = {3, 30, 31, 99}, None, []
    folder = write_shards(tmp_path / "s", 4, broken)
    for change in changes:
        num_processes, num_workers = change
        sources = [
            loader(open_stream(folder), num_workers, i, num_processes, batch_size=1) for i in range(num_processes)
        ]
        for source in sources:
            if states:
                source.load_state_dict(states)
            seen.extend(with_epochs(source, 300 if change == changes[-1] else 33 // num_processes))
        states = json.loads(json.dumps([source.state_dict() for source in sources]))
    assert_epochs(seen, sorted(set(range(100)) - broken), 2)
    told = sum(state["broken"][0] for state in states)
    assert told >= 2 * len(broken)


def test_a_crop_is_the_same_whoever_makes_it(shards):
    """A row's crop depends on the seed and the epoch."""
    pictures = [
        {number: batch["image"] for source in sources for batch in itertools.islice(source, 100 // len(sources))
         for number in batch["label"].tolist()}
        for sources in (
            [loader(open_stream(shards), batch_size=1, crop=(0.3, 0.6))],
            [loader(open_stream(shards), 0, i, 2, batch_size=1, crop=(0.3, 0.6)) for i in range(2)],
        )
    ]  # fmt: skip
    assert all(sorted(each) == list(range(100)) for each in pictures)
    assert all((pictures[0][number] == pictures[1][number]).all() for number in range(100))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_passed_over_and_counted(tmp_path, num_workers):
    broken = {3, 30, 31, 99}
    source = loader(open_stream(write_shards(tmp_path / "s", 4, broken)), num_workers, batch_size=4)
    seen = take_numbers(source, 24)
    if not num_workers:
        assert sorted(seen) == sorted(set(range(100)) - broken)
    assert broken.isdisjoint(seen)
    count, reasons = source.images.broken_images()
    assert 3 <= count <= 5 and all("cannot read the image" in reason for reason in reasons)
    resumed = loader(open_stream(tmp_path / "s"), num_workers, batch_size=4)
    resumed.load_state_dict([source.state_dict()])
    assert resumed.images.broken_images() == (count, reasons)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_fatal_on_request(tmp_path, num_workers):
    source = loader(open_stream(write_shards(tmp_path / "s", 1, {7})), num_workers, on_broken_image="error")
    with pytest.raises(UserError, match=r"cannot read the image 7\.png"):
        take(source, 10)


def test_a_stream_of_broken_images_ends(tmp_path):
    stream = open_stream(write_shards(tmp_path / "s", 1, set(range(SHARD))))
    with pytest.raises(UserError, match="none of the images of a whole epoch can be read"):
        take(loader(stream), 1)


def test_more_readers_than_images(tmp_path):
    """Each has its turn in some epochs."""
    stream = open_stream(write_shards(tmp_path / "s", 1, rows=2))
    for process in range(3):
        seen = take_numbers(loader(stream, batch_size=1, process=process, num_processes=3), 20)
        assert set(seen) == {0, 1}


def test_a_stream_without_rows(tmp_path):
    stream = open_stream(write_shards(tmp_path / "s", 2, rows=0))
    with pytest.raises(UserError, match="there is no image for reader 1 of 1"):
        take(loader(stream, batch_size=1), 1)


def test_a_cut_shard_is_named(tmp_path):
    folder = write_shards(tmp_path / "s", 2)
    stream = open_stream(folder)
    shard = folder / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-300])
    with pytest.raises(UserError, match="streaming: shard 1 cannot be read beyond row 0"):
        take(loader(stream), 12)


# Doors


def write_folder(folder, count=12):
    for number in range(count):
        target = folder / f"class_{number % 2}"
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{number}.png").write_bytes(png(number))
    return folder


def write_tar(folder, count=12):
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(shard * count // 2, (shard + 1) * count // 2):
                for suffix, data in (("png", png(number)), ("cls", str(number).encode())):
                    member = tarfile.TarInfo(f"{number:03}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_local_doors(tmp_path, kind, num_workers):
    write = {"folder": write_folder, "tar": write_tar, "parquet": lambda folder, _: write_shards(folder, 2, rows=6)}[
        kind
    ]
    train, held_out = write(tmp_path / "train", 12), write(tmp_path / "held_out", 12)
    splits, column = load_image_datasets(
        train_dir=str(train), validation_dir=str(held_out), max_eval_samples=5, streaming=True
    )
    assert isinstance(splits["train"], datasets.IterableDataset)
    assert len(splits["validation"]) == 5 and splits["validation"][0][column].size == (8, 8)
    images = ImageStream(splits["train"], column, PROCESSOR, 3, buffer_size=4)
    seen = Counter(take_numbers(StreamLoader(images, num_workers), 8))
    assert seen == Counter(dict.fromkeys(range(12), 2))


def test_some_images_of_a_stream(shards):
    options = {"train_dir": str(shards), "validation_dir": str(shards), "max_eval_samples": 3, "streaming": True}
    splits, column = load_image_datasets(max_train_samples=20, **options)
    for num_processes in (1, 5):  # the same ones for any number of readers
        seen = Counter()
        for process in range(num_processes):
            images = ImageStream(
                splits["train"], column, PROCESSOR, 1, None, 4, process=process, num_processes=num_processes,
                by_group=False,
            )  # fmt: skip
            seen.update(take_numbers(StreamLoader(images), 40 // num_processes))
        assert set(seen) == {25 * shard + row for shard in range(4) for row in range(5)}
        assert num_processes > 1 or set(seen.values()) == {2}


def test_the_demo_streams():
    splits, column = load_image_datasets(streaming=True, max_eval_samples=20)
    assert splits["train"].num_shards == 8 and len(splits["validation"]) == 20
    images = ImageStream(splits["train"], column, build_image_processor((32, 32)), 16)
    assert next(iter(StreamLoader(images)))["image"].shape == (16, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_train_samples": 0, "max_eval_samples": 3}, "max_train_samples must be at least 1, got 0"),
        ({}, "streaming needs max_eval_samples of at least 1, .*; got None"),
        ({"train_dir": "nowhere", "max_eval_samples": 3}, "train_dir: there is no file or folder nowhere"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        load_image_datasets(streaming=True, **options)


def test_a_stream_without_held_out_images(shards):
    with pytest.raises(
        UserError, match="streaming needs a split 'train', and a held-out one or validation_dir; got train"
    ):
        load_image_datasets(train_dir=str(shards), streaming=True, max_eval_samples=3)
