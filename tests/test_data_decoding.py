"""Images decoded once and shared; broken ones counted and passed over, or fatal."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from energy_transformer.data import ImageTensors, broken_images_report
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.utils.errors import UserError

PROCESSOR = build_image_processor((24, 24))
BROKEN = {2: "truncated", 5: "garbage", 6: "missing"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "energy_transformer_images"


def write_images(folder, count=8, broken=()):
    """A dataset of `count` PNG files with labels 10, 11, …; those in `broken` are damaged in three ways."""
    folder.mkdir()
    paths = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.fromarray(photograph("coffee.png")[9 * index : 9 * index + 30, :30]).save(path)
        match BROKEN[index] if index in broken else None:
            case "truncated":
                path.write_bytes(path.read_bytes()[:-200])
            case "garbage":
                path.write_bytes(b"no image")
            case "missing":
                path.unlink()
        paths.append(str(path))
    rows = {"image": paths, "label": list(range(10, 10 + count))}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def segments(cache):
    """The files with pixels, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in cache.glob("*/images.uint8")}


def everything(split, **options):
    images = ImageTensors(split, "image", PROCESSOR, **options)
    return images.__getitems__(list(range(len(images))))["image"]


def test_are_decoded_once(tmp_path, cache):
    split = write_images(tmp_path / "images")
    first = everything(split)
    written = segments(cache)
    assert len(written) == 1 and not [path for path in cache.iterdir() if path.name[0] == "."]
    assert torch.equal(everything(split), first)
    assert segments(cache) == written


def test_another_size_is_another_file(tmp_path, cache):
    split = write_images(tmp_path / "images")
    sizes = [ImageTensors(split, "image", build_image_processor((side, side)))[0]["image"].shape for side in (16, 24)]
    assert sizes == [(3, 16, 16), (3, 24, 24)]
    assert len(segments(cache)) == 2


def test_every_seed_is_an_index_into_what_is_decoded(tmp_path, cache):
    """Of three ways to hold images out and any selection, each image is decoded and kept once."""
    split = write_images(tmp_path / "images")
    whole = everything(split, max_cached_bytes=0)
    for seed in range(3):
        parts = split.train_test_split(test_size=0.3, seed=seed)
        for part in parts.values():
            rows = [label - 10 for label in part["label"]]
            assert torch.equal(everything(part), whole[rows])
    assert torch.equal(everything(split.select([3, 1, 3])), whole[[3, 1, 3]])
    assert sum(path.stat().st_size for path in segments(cache)) == 8 * 3 * 24 * 24


def test_a_file_replaced_by_one_of_the_same_time_and_size_is_noticed(tmp_path, cache):
    split = write_images(tmp_path / "images")
    before = everything(split)
    path = tmp_path / "images" / "3.png"
    status, data = path.stat(), path.read_bytes()
    other = io.BytesIO()
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(other, "PNG")
    if len(other.getvalue()) < len(data):  # Pillow passes over what follows the picture
        other.write(bytes(len(data) - len(other.getvalue())))
    path.write_bytes(other.getvalue())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    after = everything(split)
    assert torch.equal(after[3], before[3].flip(-1, -2))
    assert (after != before).flatten(1).any(1).nonzero().flatten().tolist() == [3]


def test_all_that_is_kept_is_bounded(tmp_path, cache):
    """What was not used for longest goes first; what this process reads from stays, and the rest is decoded as read."""
    bytes_each = 3 * 24 * 24
    splits = [write_images(tmp_path / name) for name in "abc"]
    limit = 20 * bytes_each
    paths = [path for split in splits[:2] for path in split_files(split)]
    subprocess.run([sys.executable, "-c", KEEP, cache.parent, *paths, str(limit)], check=True)
    first, second = sorted(segments(cache), key=segments(cache).get)
    os.utime(second.parent / "index.npy", (1, 1))
    in_use = ImageTensors(splits[2], "image", PROCESSOR, max_cached_bytes=limit)
    assert in_use.is_decoded and first in segments(cache) and second not in segments(cache)
    assert sum(path.stat().st_size for path in segments(cache)) <= limit
    smaller = ImageTensors(splits[1], "image", PROCESSOR, max_cached_bytes=12 * bytes_each)
    assert not smaller.is_decoded, "beside the images in use there is no room"
    assert torch.equal(smaller[2]["image"], everything(splits[1], max_cached_bytes=0)[2])


KEEP = """
import sys, datasets
from energy_transformer.data import ImageTensors
from energy_transformer.data.image_processing import build_image_processor
cache, *paths, limit = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = cache
for first in range(0, len(paths), 8):
    split = datasets.Dataset.from_dict({"image": paths[first : first + 8]}).cast_column("image", datasets.Image())
    images = ImageTensors(split, "image", build_image_processor((24, 24)), max_cached_bytes=int(limit))
    assert images.is_decoded
"""


def split_files(split):
    return [image["path"] for image in split.cast_column("image", datasets.Image(decode=False))["image"]]


def test_what_a_killed_run_left_is_deleted(tmp_path, cache):
    """Also the entries of earlier versions, which had other files."""
    split = write_images(tmp_path / "images")
    paths = split_files(split)
    process = subprocess.Popen([sys.executable, "-c", SLOW_DECODE + KEEP, cache.parent, *paths, "1000000"])
    while not list(cache.glob(".*/images.uint8")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert list(cache.glob(".*/images.uint8"))
    (cache / "0123abcd").mkdir()
    (cache / "0123abcd" / "images.uint8").write_bytes(bytes(100))
    (cache / "0123abcd.lock").touch()
    everything(split)
    assert len(list(cache.iterdir())) == len(segments(cache)) == 1


SLOW_DECODE = """
import time
from energy_transformer.data import decoding
decode = decoding.Decoder.decode
decoding._BATCH = 1
def slow(self, row, key=()):
    time.sleep(0.5 * row)
    return decode(self, row, key)
decoding.Decoder.decode = slow
"""


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "no index", "empty index", "no array", "pickle"])
def test_a_damaged_file_is_written_anew(tmp_path, cache, caplog, damage):
    split = write_images(tmp_path / "images")
    whole = everything(split).clone()
    (pixels,), (index,) = segments(cache), cache.glob("*/index.npy")
    data = bytearray(pixels.read_bytes())
    if damage == "flipped bit":
        data[1000] ^= 1
        pixels.write_bytes(data)
    elif damage == "cut":
        pixels.write_bytes(data[:-1])
    elif damage == "no index":
        index.unlink()
    elif damage == "empty index":
        index.write_text("")
    elif damage == "no array":
        np.save(index, np.zeros(3))
    else:
        np.save(index, np.array([print]), allow_pickle=True)
    assert torch.equal(everything(split), whole)
    assert "damaged" in caplog.text
    (pixels,) = segments(cache)
    assert pixels.read_bytes() == whole.numpy().tobytes()


def test_a_cache_that_cannot_be_written(tmp_path, cache):
    split = write_images(tmp_path / "images")
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"decoded images cannot be kept in .*set HF_DATASETS_CACHE") as error:
        ImageTensors(split, "image", PROCESSOR)
    assert "\n" not in str(error.value)


DECODE = """
import sys, datasets
from pathlib import Path
from energy_transformer.data import ImageTensors
from energy_transformer.data.decoding import Decoder
from energy_transformer.data.image_processing import build_image_processor
folder, log = map(Path, sys.argv[1:])
datasets.config.HF_DATASETS_CACHE = folder / "cache"
decode = Decoder.decode
def counted(self, row, key=()):
    with log.open("a") as file:
        file.write(f"{row}\\n")
    return decode(self, row, key)
Decoder.decode = counted
split = datasets.load_dataset("imagefolder", data_dir=str(folder / "images"), split="train", cache_dir=folder / "hf")
print(int(ImageTensors(split, "image", build_image_processor((24, 24))).__getitems__(list(range(8)))["image"].sum()))
"""


def test_of_two_processes_at_once_one_decodes(tmp_path):
    write_images(tmp_path / "images")
    log = tmp_path / "decoded.txt"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DECODE, tmp_path, log], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        )
        for _ in range(2)
    ]
    sums = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sums[0] == sums[1] and sums[0].strip()
    assert sorted(map(int, log.read_text().split())) == list(range(8))


def test_what_is_read_as_it_is_needed_is_cropped_anew_in_each_epoch(tmp_path):
    """The crop is one of the seed, the epoch and the image alone; what is decoded once is cropped later."""
    split = write_images(tmp_path / "images")
    options = {"crop": (0.1, 1.0), "draft": True}
    assert not ImageTensors(split, "image", PROCESSOR, **options).is_cropped
    images, again, other = (
        ImageTensors(split, "image", PROCESSOR, max_cached_bytes=0, seed=seed, **options) for seed in (0, 0, 1)
    )
    assert images.is_cropped and len(images) == 8
    first, second = images.__getitems__([3, 5]), images.__getitems__([3 + 8, 5 + 8])
    assert first["index"].tolist() == second["index"].tolist() == [3, 5]
    assert not torch.equal(first["image"], second["image"])
    assert torch.equal(again[3]["image"], first["image"][0]) and not torch.equal(other[3]["image"], first["image"][0])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("max_cached_bytes", [2**20, 0])
def test_broken_images_are_left_out_counted_and_named(tmp_path, max_cached_bytes, num_workers):
    split = write_images(tmp_path / "images", broken=BROKEN)
    images = ImageTensors(
        split, "image", PROCESSOR, "label", max_cached_bytes=max_cached_bytes, check=True, num_workers=num_workers
    )
    assert len(images) == 5
    batch = images.__getitems__(list(range(5)))
    assert batch["label"].tolist() == [10, 11, 13, 14, 17]
    assert batch["index"].tolist() == [0, 1, 2, 3, 4]
    whole = ImageTensors(write_images(tmp_path / "whole"), "image", PROCESSOR, "label")
    assert torch.equal(batch["image"], whole.__getitems__([0, 1, 3, 4, 7])["image"])
    count, reasons = images.broken_images()
    assert count == 3 and [f"{row}.png" in reason for row, reason in zip(BROKEN, reasons, strict=True)] == [True] * 3
    assert broken_images_report(count, reasons).startswith("passed over 3 broken images: cannot read the image ")
    again = ImageTensors(split, "image", PROCESSOR, max_cached_bytes=max_cached_bytes, check=True)
    assert again.broken_images() == (count, reasons), "also where they come from the cache"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_replaced_by_the_next_one_where_images_are_decoded_as_read(tmp_path, num_workers):
    """The batch keeps its size, the label goes with the image, and the workers' findings reach the main process."""
    images = ImageTensors(
        write_images(tmp_path / "images", broken=BROKEN), "image", PROCESSOR, "label", max_cached_bytes=0
    )
    assert len(images) == 8 and images.broken_images()[0] == 0
    loader = DataLoader(images, batch_size=4, num_workers=num_workers, collate_fn=images.collate)
    for _ in range(2):
        batches = list(loader)
        assert [batch["label"].tolist() for batch in batches] == [[10, 11, 13, 13], [14, 17, 17, 17]]
        for batch in batches:
            for image, label in zip(batch["image"], batch["label"], strict=True):
                assert torch.equal(image, images[int(label) - 10]["image"])
        assert images.broken_images()[0] == 3


@pytest.mark.parametrize("options", [{}, {"max_cached_bytes": 0, "check": True}])
def test_a_broken_image_is_fatal_on_request(tmp_path, options):
    split = write_images(tmp_path / "images", broken=[5])
    with pytest.raises(UserError, match=r"cannot read the image .*5\.png"):
        ImageTensors(split, "image", PROCESSOR, on_broken_image="error", **options)
    ImageTensors(split, "image", PROCESSOR, **options)
    with pytest.raises(UserError, match=r"cannot read the image .*5\.png"):
        ImageTensors(split, "image", PROCESSOR, on_broken_image="error", **options)


def test_a_broken_image_is_fatal_on_request_where_images_are_decoded_as_read(tmp_path):
    split = write_images(tmp_path / "images", broken=[5])
    images = ImageTensors(split, "image", PROCESSOR, max_cached_bytes=0, on_broken_image="error")
    with pytest.raises(UserError, match=r"cannot read the image .*5\.png"):
        list(DataLoader(images, batch_size=4, num_workers=1, collate_fn=images.collate))


@pytest.mark.parametrize("max_cached_bytes", [2**20, 0])
def test_no_image_that_can_be_read_is_an_error(tmp_path, max_cached_bytes):
    split = write_images(tmp_path / "images", broken=BROKEN).select(list(BROKEN))
    with pytest.raises(UserError, match=r"none of the 3 images can be read: cannot read the image .*2\.png"):
        ImageTensors(split, "image", PROCESSOR, max_cached_bytes=max_cached_bytes)[0]


def test_a_row_without_an_image_is_broken(tmp_path):
    paths = [str(tmp_path / "images" / f"{i}.png") for i in range(3)]
    write_images(tmp_path / "images")
    split = datasets.Dataset.from_dict({"image": [paths[0], None, paths[2]]}).cast_column("image", datasets.Image())
    images = ImageTensors(split, "image", PROCESSOR)
    assert len(images) == 2 and images.broken_images() == (1, ["there is no image of row 1 in column 'image'"])


def test_an_image_of_no_bytes_is_broken(tmp_path):
    write_images(tmp_path / "images")
    good = (tmp_path / "images" / "0.png").read_bytes()
    rows = [{"bytes": content, "path": None} for content in (good, b"")]
    split = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
    images = ImageTensors(split, "image", PROCESSOR)
    assert len(images) == 1
    (reason,) = images.broken_images()[1]
    assert reason == "cannot read the image of row 1 in column 'image': it is of no format that Pillow knows"


def test_the_report_names_the_first_few():
    assert broken_images_report(7, ["a", "b"]) == "passed over 7 broken images: a; b; and 5 more"
