"""A dataset in the layout of uoft-cs/cifar10 comes from a Hub: whole, streamed, and into the training script."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_server.cifar10 import NAMES
from huggingface_hub import HfApi
from safetensors.torch import load_file

from energy_transformer.data import load_image_datasets
from energy_transformer.utils.errors import UserError

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


def train(environment, output, **options):
    """Runs the training script for a few steps on the dataset; returns what is in all_results.json."""
    options = {
        "config": ROOT / "configuration" / "training" / "demo.yaml",
        "dataset_name": NAME,
        "output_dir": output,
        "max_train_steps": 3,
        "num_warmup_steps": 0,
        "max_train_samples": 32,
        "max_eval_samples": 16,
        "per_device_train_batch_size": 8,
        "cpu": "true",
        **options,
    }
    command = [sys.executable, str(ROOT / "scripts" / "train_masked_image_modeling.py")]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=output.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "all_results.json").read_text())


def test_train_push_pull_and_train_on(cifar10, tmp_path):
    """On two machines: what the second one starts from is what the first one pushed."""
    first, second = tmp_path / "first", tmp_path / "second"
    results = train(cifar10.environment(tmp_path / "home"), first)
    assert results["arguments"]["dataset_name"] == NAME and np.isfinite(results["eval_masked_mse"])
    parquet = cifar10.head(NAME, "dataset").files["plain_text/train-00000-of-00001.parquet"]
    assert len(cifar10.asked(f"^/{parquet.sha256}$", "GET")) == 1
    assert "modeling_energy_transformer.py" in {path.name for path in first.iterdir()}

    api = HfApi(token=cifar10.token)
    api.create_repo("alice/model", private=True)
    api.upload_folder(repo_id="alice/model", folder_path=first)
    environment = cifar10.environment(tmp_path / "other_home", cifar10.token)
    train(environment, second, model_name_or_path="alice/model", learning_rate=1e-12, min_learning_rate=0)
    pushed, moved = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all((moved[name] - tensor).abs().max() < 1e-6 for name, tensor in pushed.items())
