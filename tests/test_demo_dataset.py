"""The embedded photographs: real crops, disjoint regions, the same everywhere, built once."""

import itertools

import numpy as np
import pytest

from energy_transformer.data.demo import (
    CROP,
    PHOTOGRAPHS,
    SCALES,
    crop_boxes,
    load_demo_dataset,
    photograph,
    row_bands,
)
from energy_transformer.data.loading import load_image_datasets
from energy_transformer.data.mnist5k import load_mnist5k


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def splits(cache):
    return load_demo_dataset(cache)


FILES = [(name, file) for name, files in PHOTOGRAPHS.items() for file in files]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_no_pixel_row_is_in_both_splits(name, file):
    """By rows: the two views of the motorcycle are rectified, so a scene point keeps its row but not its column."""
    height, width = photograph(file).shape[:2]
    rows = {split: set() for split in ("train", "test")}
    for split in rows:
        for scale in SCALES:
            for left, top, right, bottom in crop_boxes(height, width, split, scale):
                assert left >= 0 and right <= width and right - left == bottom - top == CROP * scale
                rows[split].update(range(top, bottom))
    assert rows["train"] and rows["test"]
    assert rows["train"].isdisjoint(rows["test"])


def test_bands_cover_the_photograph_once():
    bands = sorted(band for bands in row_bands(401).values() for band in bands)
    assert bands[0][0] == 0 and bands[-1][1] == 401
    assert all(first[1] == second[0] for first, second in itertools.pairwise(bands))


def test_every_photograph_is_in_both_splits(splits):
    assert len(splits["train"]) > 5000 and len(splits["test"]) > 500
    for split in splits.values():
        assert split.features["label"].names == list(PHOTOGRAPHS)
        counts = np.bincount(split["label"], minlength=len(PHOTOGRAPHS))
        assert (counts >= 20).all(), counts
        image = split[0]["image"]
        assert image.size == (CROP, CROP) and image.mode == "RGB"


def test_crops_at_full_size_are_pixels_of_their_photograph(splits):
    """The first test crop of the coffee cup that is not scaled down stands in the photograph, in its test band."""
    pixels = photograph("coffee.png")
    first, last = row_bands(pixels.shape[0])["test"][0]
    boxes = crop_boxes(*pixels.shape[:2], "test", scale=1)
    originals = {pixels[top:bottom, left:right].tobytes() for left, top, right, bottom in boxes}
    label = list(PHOTOGRAPHS).index("coffee")
    crops = [np.asarray(row["image"]).tobytes() for row in splits["test"] if row["label"] == label]
    assert sum(crop in originals for crop in crops) >= 20
    assert all(first <= top and bottom <= last for _, top, _, bottom in boxes)


def test_no_test_crop_is_among_the_training_crops(splits):
    train = {np.asarray(image).tobytes() for image in splits["train"]["image"]}
    assert not any(np.asarray(image).tobytes() in train for image in splits["test"]["image"])


def test_is_built_once_and_the_same_everywhere(splits, cache, tmp_path):
    folder = next(cache.glob("energy_transformer_demo/*"))
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}
    again = load_demo_dataset(cache)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")} == written
    elsewhere = load_demo_dataset(tmp_path)
    for split in splits:
        assert splits[split]["label"] == again[split]["label"] == elsewhere[split]["label"]
        for index in range(0, len(splits[split]), 97):
            assert np.array_equal(splits[split][index]["image"], elsewhere[split][index]["image"])
    assert [path.name for path in cache.glob("energy_transformer_demo/.*")] == []


def test_the_digits_are_divided_by_class_and_share_no_image():
    splits = load_mnist5k()
    images = {name: {image.tobytes() for image in rows["image"]} for name, rows in splits.items()}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4000, "test": 1000}
    assert all(np.bincount(rows["label"]).tolist() == [len(rows) // 10] * 10 for rows in splits.values())
    assert not images["train"] & images["test"]
    loaded, column = load_image_datasets("mnist5k")
    assert column == "image" and loaded["validation"][0]["image"].size == (28, 28)
