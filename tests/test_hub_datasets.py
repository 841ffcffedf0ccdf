"""A dataset in the layout of uoft-cs/cifar10 comes from a Hub: whole, streamed, and into the training script."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_server.cifar10 import NAMES

from energy_transformer.data import load_image_datasets
from energy_transformer.errors import UserError

ROOT = Path(__file__).parents[1]
NAME = "uoft-cs/cifar10"


@pytest.fixture
def cifar10(cifar10_folder, hub):  # the folder first: it is made with the user's cache
    hub.add_repository(NAME, cifar10_folder, kind="dataset")
    return hub


def rows_of(folder, split):
    return datasets.Dataset.from_parquet(str(folder / "plain_text" / f"{split}-00000-of-00001.parquet"))


def assert_same_rows(rows, expected):
    count = 0
    for got, wanted in zip(rows, expected, strict=True):
        assert got["label"] == wanted["label"] and np.array_equal(got["img"], wanted["img"])
        count += 1
    assert count


def test_whole(cifar10, cifar10_folder):
    loaded = datasets.load_dataset(NAME)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 512, "test": 64}
    assert loaded["train"].features["label"].names == NAMES
    assert isinstance(loaded["train"].features["img"], datasets.Image)
    assert_same_rows(loaded["test"], rows_of(cifar10_folder, "test"))
    asked = len(cifar10.asked("parquet$", "GET"))
    datasets.load_dataset(NAME)
    assert len(cifar10.asked("parquet$", "GET")) == asked, "the second time it comes from the cache"


def test_streamed(cifar10, cifar10_folder):
    loaded = datasets.load_dataset(NAME, streaming=True)
    assert set(loaded) == {"train", "test"} and loaded["train"].features["label"].names == NAMES
    streamed = list(loaded["test"])
    assert not list(datasets.config.HF_DATASETS_CACHE.rglob("*.arrow"))
    assert_same_rows(streamed, rows_of(cifar10_folder, "test"))
    ranges = [request.headers.get("range") for request in cifar10.requests if "signature" in request.query]
    assert any(ranges), "streaming reads parts of the file"


def test_streamed_when_the_connection_breaks(cifar10, cifar10_folder):
    oid = cifar10.head(NAME, "dataset").files["plain_text/test-00000-of-00001.parquet"].sha256
    cifar10.fail(f"/{oid}", method="GET", status=503)
    assert_same_rows(datasets.load_dataset(NAME, split="test", streaming=True), rows_of(cifar10_folder, "test"))
    assert 503 in [request.status for request in cifar10.requests]


def test_the_loader_finds_column_and_splits(cifar10):
    splits, column = load_image_datasets(NAME, max_train_samples=20)
    assert column == "img" and (len(splits["train"]), len(splits["validation"])) == (20, 64)


@pytest.mark.parametrize(("name", "private"), [("alice/private", True), ("alice/missing", False)])
def test_a_dataset_that_is_not_there_for_us(hub, cifar10_folder, name, private):
    if private:
        hub.add_repository(name, cifar10_folder, kind="dataset", private=True)
    with pytest.raises(UserError, match=name) as error:
        load_image_datasets(name)
    assert "\n" not in str(error.value)


def test_training_on_it(cifar10, tmp_path):
    output = tmp_path / "output"
    script, recipe = (
        ROOT / "scripts" / "train_masked_image_modeling.py",
        ROOT / "configuration" / "training" / "demo.yaml",
    )
    options = "--max_train_steps 3 --num_warmup_steps 0 --max_train_samples 32 --max_eval_samples 16 --cpu true"
    command = [sys.executable, script, "--config", recipe, "--dataset_name", NAME, "--output_dir", str(output)]
    command += [*options.split(), "--per_device_train_batch_size", "8"]
    environment = cifar10.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "all_results.json").read_text())
    assert results["arguments"]["dataset_name"] == NAME and np.isfinite(results["eval_masked_mse"])
    train = cifar10.head(NAME, "dataset").files["plain_text/train-00000-of-00001.parquet"]
    assert len(cifar10.asked(f"^/{train.sha256}$", "GET")) == 1
