"""How often labels were taken for each other, without a matrix of all labels."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Confusion:
    """The pairs of a true and a predicted label that occur, and how often: arrays (P,) of int64.

    It grows with the images, and not with the square of the number of labels, as a matrix does.
    """

    true: np.ndarray
    predicted: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, predictions: torch.Tensor, references: torch.Tensor) -> "Confusion":
        """Count predicted and true labels, (B,) each."""
        pairs, count = torch.stack([references.cpu(), predictions.cpu()], -1).unique(dim=0, return_counts=True)
        return cls(pairs[:, 0].numpy(), pairs[:, 1].numpy(), count.numpy())

    def images(self, num_labels: int) -> np.ndarray:
        """How many images each label has, (num_labels,)."""
        return np.bincount(self.true, self.count, num_labels).astype(np.int64)

    def right(self, num_labels: int) -> np.ndarray:
        """How many of them were predicted, (num_labels,)."""
        return np.bincount(self.true, self.count * (self.true == self.predicted), num_labels).astype(np.int64)

    def most_confused(self, num_labels: int, most: int) -> np.ndarray:
        """The labels with the most errors, as the true or the predicted one, in their order."""
        errors = self.count * (self.true != self.predicted)
        errors = np.bincount(self.true, errors, num_labels) + np.bincount(self.predicted, errors, num_labels)
        return np.sort(np.argsort(-errors, kind="stable")[:most])

    def matrix(self, labels: np.ndarray) -> np.ndarray:
        """The counts of some labels in rising order, rows are true and columns predicted ones."""
        place = np.searchsorted(labels, [self.true, self.predicted]).clip(max=len(labels) - 1)
        known = (labels[place] == [self.true, self.predicted]).all(0)
        counts = np.zeros((len(labels), len(labels)), np.int64)
        counts[place[0, known], place[1, known]] = self.count[known]
        return counts
