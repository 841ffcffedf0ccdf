"""Held-out images are decoded as they are measured, broken ones left out, and the baseline of pixels is found once."""

import json

import datasets
import pytest
import torch
from PIL import Image
from training_runs import build, finish, launcher, train

from energy_transformer.data import ImageTensors
from energy_transformer.data.demo import PHOTOGRAPHS, load_demo_dataset, photograph
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.training.image_classification_evaluation import _even_selection, pixel_probe_accuracy
from energy_transformer.utils.errors import UserError

READ_AS_THEY_ARE = ["--max_cached_bytes=0", "--max_train_steps=4", "--eval_steps=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """32 crops to train on, and 12 held out, of which two are broken."""
    folder, pixels = tmp_path_factory.mktemp("images"), photograph("coffee.png")
    for i in range(44):
        path = folder / ("train" if i < 32 else "held_out") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[6 * i : 6 * i + 32, 8 * i : 8 * i + 32]).save(path)
    for name in ("33.png", "40.png"):
        (folder / "held_out" / name).write_bytes(b"no image")
    return folder


@pytest.fixture
def words(folder):
    return [*READ_AS_THEY_ARE, f"--train_dir={folder / 'train'}", f"--validation_dir={folder / 'held_out'}"]


def test_broken_held_out_images_are_found_as_they_are_measured(words, tmp_path, caplog):
    training = build(tmp_path / "broken", *words)
    assert training.known_broken_held_out == 0 and len(training.eval_images) == 12, "there is no pass of its own"
    results = training.run()
    assert (results["eval_samples"], results["eval_broken_images"]) == (10, 2)
    told = [message for message in caplog.messages if "evaluation passed over" in message]
    assert len(told) == 1 and "passed over 2 broken images" in told[0] and "33.png" in told[0] and "40.png" in told[0]
    assert 0 < results["eval_mean_color_mse"] < 1


def test_several_processes_leave_out_the_same_images(words, tmp_path):
    one = train(tmp_path / "one", *words)
    done = finish(launcher("multi_cpu", tmp_path / "two", *words, "--per_device_train_batch_size=4"))
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert (two["eval_samples"], two["eval_broken_images"]) == (10, 2)
    for name in ("eval_mean_color_mse", "eval_neighbor_average_mse"):
        assert two[name] == pytest.approx(one[name], rel=1e-6)


def test_a_broken_held_out_image_that_is_not_allowed_is_found_before_training(words, tmp_path):
    with pytest.raises(UserError, match=r"33\.png"):
        build(tmp_path, *words, "--on_broken_image=error")


class Counted(ImageTensors):
    """Counts what is read."""

    read = 0

    def __getitems__(self, indices):
        self.read += len(indices)
        return super().__getitems__(indices)


def demo_images(split, count=200):
    rows = load_demo_dataset()[split].shuffle(seed=0).select(range(count))
    return Counted(rows, "image", build_image_processor((32, 32)), "label", max_cached_bytes=0)


def test_the_accuracy_of_pixels_is_found_once(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    random_state = torch.get_rng_state()
    train_images, held_out = demo_images("train"), demo_images("test")
    accuracy = pixel_probe_accuracy(train_images, held_out, len(PHOTOGRAPHS))
    assert 0.3 < accuracy < 1 and train_images.read >= 200 and held_out.read >= 200
    train_images.read = held_out.read = 0
    assert pixel_probe_accuracy(train_images, held_out, len(PHOTOGRAPHS)) == accuracy
    assert max(train_images.read, held_out.read) <= 32
    assert torch.equal(torch.get_rng_state(), random_state)
    other = demo_images("test", 150)
    pixel_probe_accuracy(train_images, other, len(PHOTOGRAPHS))
    assert other.read >= 150, "of other images it is another"
    for kept in tmp_path.rglob("*.json"):
        kept.write_text("{")
    assert pixel_probe_accuracy(train_images, held_out, len(PHOTOGRAPHS)) == accuracy


def test_the_accuracy_of_pixels_reads_a_bounded_number_of_images():
    assert _even_selection(5) == [0, 1, 2, 3, 4]
    chosen = _even_selection(1_281_167)
    assert len(chosen) == len(set(chosen)) == 5000 and (chosen[0], chosen[-1]) == (0, 1_281_166)
