"""Figures of merit of a masked-image model, and the baselines beside it."""

from .baselines import masked_squared_error, mean_visible_color, neighbor_average

__all__ = ["masked_squared_error", "mean_visible_color", "neighbor_average"]
