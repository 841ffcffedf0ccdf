"""The same run, however a step's images are divided over processes and accumulated batches."""

import json
import shutil

import pytest
import torch
from training_runs import DEMO, TINY, finish, launcher, losses, train, weights

from energy_transformer.data import StepSampler, batch_slice
from energy_transformer.data.sampling import divide_step
from energy_transformer.training.masked_image_modeling import MaskedImageModelingTraining
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.utils.errors import UserError


def steps(batch_size, batches_per_step, num_processes, count=7, first=0):
    """For each step the indices of all processes' batches, put back in their places."""
    iterators = []
    for process in range(num_processes):
        sampler = StepSampler(50, batch_size, batches_per_step, 3, process, num_processes)
        sampler.step = first
        iterators.append(iter(sampler))
    for _ in range(count):
        images = [0] * (batch_size * batches_per_step * num_processes)
        for batch in range(batches_per_step):
            for process, iterator in enumerate(iterators):
                images[batch_slice(batch, batch_size, process, num_processes)] = next(iterator)
        yield images


@pytest.mark.parametrize(("batch_size", "batches", "processes"), [(6, 2, 1), (6, 1, 2), (3, 2, 2), (4, 1, 3)])
def test_a_step_has_the_same_images(batch_size, batches, processes):
    assert list(steps(batch_size, batches, processes)) == list(steps(12, 1, 1))


def test_an_iteration_begins_at_any_step():
    whole = list(steps(4, 1, 3, count=11))
    for first in (1, 4, 5, 10):
        assert list(steps(6, 2, 1, count=11 - first, first=first)) == whole[first:]


def test_each_epoch_is_a_permutation_of_its_own():
    order = [index for images in steps(5, 1, 2, count=10) for index in images]
    assert sorted(order[:50]) == list(range(50)) and sorted(order[50:]) == list(range(50, 100))
    assert order[:50] != [index - 50 for index in order[50:]]
    assert order[:50] != order[50:]
    assert torch.tensor(order[:50]).diff().abs().float().mean() > 8, "shuffled"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process with all images of a step, and masks that differ in number between the images."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, *MASKS)
    return folder


MASKS = ["--mask_ratio=0.4", "--max_train_steps=12", "--seed=3", "--ema_decay=0.9"]


def assert_same_run(first, second):
    assert losses(first).keys() == losses(second).keys() == set(range(1, 13))
    for step, loss in losses(first).items():
        assert losses(second)[step] == pytest.approx(loss, rel=2e-5), step
    one, other = weights(first), weights(second)
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=2e-5, msg=name)


def test_accumulated_batches_are_one_step(whole, tmp_path):
    train(tmp_path, *MASKS, "--per_device_train_batch_size=4", "--gradient_accumulation_steps=2")
    assert_same_run(whole, tmp_path)


def test_two_processes_are_one_step(whole, tmp_path):
    done = finish(launcher("multi_cpu", tmp_path, *MASKS, "--per_device_train_batch_size=4"))
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, tmp_path)


def test_masks_of_different_number_weigh_each_batch(tmp_path):
    """A batch of few masked patches counts for less than one of many."""

    class Uneven(MaskedImageModelingTraining):
        def draw(self, num_images, generator):
            draws = super().draw(num_images, generator)
            few = torch.arange(num_images)[:, None] < num_images // 2
            masked = draws["masked"] & ~(few & (torch.arange(64) > 9))
            return {**draws, "masked": masked, "corrupted": masked}

    for name, words in (("one", ()), ("two", ("--per_device_train_batch_size=4", "--gradient_accumulation_steps=2"))):
        args = [*TINY, *MASKS, f"--output_dir={tmp_path / name}", *words]
        Uneven(parse_arguments(args, DEMO, MaskedImageModelingArguments)).run()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_state_is_taken_up_by_another_division(whole, tmp_path):
    train(tmp_path, *MASKS, "--checkpointing_steps=5", "--max_train_steps=12")
    words = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=4"]
    train(tmp_path, *MASKS, *words, f"--resume_from_checkpoint={tmp_path / 'checkpoint-5'}")
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize(
    ("images", "processes", "largest", "multiple_of", "expected"),
    [(8, 1, 8, 1, (8, 1)), (8, 2, 8, 1, (4, 1)), (8, 4, 1, 1, (1, 2)), (768, 8, 40, 1, (32, 3)), (12, 2, 5, 2, (2, 3)),
     (7, 1, 4, 1, (1, 7))],
)  # fmt: skip
def test_a_step_is_divided_into_the_largest_batches(images, processes, largest, multiple_of, expected):
    assert divide_step(images, processes, largest, multiple_of) == expected


@pytest.mark.parametrize(("images", "processes", "multiple_of"), [(8, 3, 1), (2, 4, 1), (6, 2, 2)])
def test_a_step_that_cannot_be_divided_is_refused(images, processes, multiple_of):
    with pytest.raises(UserError, match=rf"global_batch_size {images} cannot be divided over {processes} process"):
        divide_step(images, processes, 8, multiple_of)


def test_another_number_of_processes_goes_on_with_the_same_words(whole, tmp_path):
    """Begun by one process of at most 4 images a batch, gone on by two, and ended by one again."""
    words = [*MASKS, "--global_batch_size=8", "--per_device_train_batch_size=4", "--resume_from_checkpoint=latest"]
    stop = ["--max_train_steps=12", "--checkpointing_steps=4"]
    train(tmp_path, *words, *stop)
    for step in (8, 12):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    (tmp_path / "all_results.json").unlink()  # which says that the run has ended
    done = finish(launcher("multi_cpu", tmp_path, *words, *stop))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "checkpoint-12")
    (tmp_path / "all_results.json").unlink()
    train(tmp_path, *words, *stop)
    assert_same_run(whole, tmp_path)
    saved = json.loads((tmp_path / "all_results.json").read_text())["arguments"]
    assert (saved["global_batch_size"], saved["gradient_accumulation_steps"]) == (8, 2)


def test_fully_sharded_processes_are_one_step(tmp_path):
    words = [word for word in MASKS if "ema" not in word]
    train(tmp_path / "one", *words)
    states = ["--checkpointing_steps=5", "--per_device_train_batch_size=4"]
    done = finish(launcher("fsdp", tmp_path / "two", *words, *states))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert {path.name for path in (tmp_path / "two").glob("*.py")} == {p.name for p in (tmp_path / "one").glob("*.py")}
    again = [*words, *states, f"--resume_from_checkpoint={tmp_path / 'two' / 'checkpoint-5'}"]
    done = finish(launcher("fsdp", tmp_path / "two", *again))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
