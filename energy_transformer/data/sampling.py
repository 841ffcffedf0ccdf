"""The order of the training images, the same however a step's images are divided over processes and batches."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ..utils.errors import UserError


def batch_slice(batch: int, batch_size: int, process: int, num_processes: int) -> slice:
    """Where the images of a process in its `batch`-th batch of a step stand among all images of the step."""
    first = (batch * num_processes + process) * batch_size
    return slice(first, first + batch_size)


def divide_step(num_images: int, num_processes: int, largest_batch: int, multiple_of: int = 1) -> tuple[int, int]:
    """The largest batch that is allowed, and how many of them each process accumulates, for a step of `num_images`.

    Raises:
        UserError: when they cannot be divided evenly.
    """
    share, rest = divmod(num_images, num_processes)
    if not rest:
        for batches in range(1, share + 1):
            batch, rest = divmod(share, batches)
            if not rest and batch <= largest_batch and batch % multiple_of == 0:
                return batch, batches
    raise UserError(
        f"global_batch_size {num_images} cannot be divided over {num_processes} process(es) into equal batches of at "
        f"most {largest_batch}{' images, an even number' if multiple_of == 2 else ' images'}"
    )


class StepSampler(Sampler[list[int]]):
    """The indices of one process's batches, epoch after epoch without an end. They count on from epoch to epoch: those
    of the second are `num_images` and following, and so on.

    The images of a step are a function of the seed, the epoch and the step alone: they are drawn for all processes
    and all accumulated batches together, and [`batch_slice`] says which of them a batch gets. Each epoch is a
    permutation of its own, and leaves out the images that do not fill a step.

    Args:
        num_images: images of the dataset.
        batch_size: images of a batch of one process.
        batches_per_step: batches that a process accumulates for a step.
        seed, process, num_processes: as their names say.
    """

    def __init__(self, num_images: int, batch_size: int, batches_per_step: int, seed: int, process=0, num_processes=1):
        self.num_images = num_images
        self.batch_size = batch_size
        self.batches_per_step = batches_per_step
        self.seed = seed
        self.process, self.num_processes = process, num_processes
        self.step = 0  # where the iteration begins

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.batches_per_step * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.images_per_step

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.step, self.steps_per_epoch)
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
            order += epoch * self.num_images
            for step in range(first, self.steps_per_epoch):
                images = order[step * self.images_per_step : (step + 1) * self.images_per_step]
                for batch in range(self.batches_per_step):
                    yield images[batch_slice(batch, self.batch_size, self.process, self.num_processes)].tolist()
            epoch, first = epoch + 1, 0
