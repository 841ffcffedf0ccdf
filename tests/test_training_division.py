"""The same run, however a step's images are divided over processes and accumulated batches."""

import pytest
import torch

from energy_transformer.data import StepSampler, batch_slice


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
    assert sorted(order[:50]) == sorted(order[50:]) == list(range(50))
    assert order[:50] != order[50:]
    assert torch.tensor(order[:50]).diff().abs().float().mean() > 8, "shuffled"
