"""See inside: from a model and images to reconstructions and pictures of what the descent does.

[`record_descent`] and [`reconstruct`] let a model descend and keep what there is to see; each function whose name ends
in `_figure` draws one thing of it, and returns a [`Picture`]: a matplotlib figure that shows itself in a notebook, with
the arrays behind it in `values`.
"""

from .all_pictures import all_pictures
from .animation import Animation, descent_animation
from .attention_pictures import attention_figure
from .classification_pictures import confusion_figure, predictions_figure
from .completion import Completion, complete, completion_figure, load_mask
from .energy_pictures import energy_figure, token_energy_figure
from .features import extract_features, knn_accuracy, linear_probe_accuracy
from .loading import (
    demo_images,
    image_files,
    load_for_inspection,
    load_for_reconstruction,
    prepare_image,
    random_masks,
)
from .memories import decoded_memories, memory_activations, most_active, scaled_memories
from .memory_pictures import memory_effect_figure, memory_figure
from .overview import overview_figure
from .pictures import Picture, even_sample
from .reconstruction import Reconstruction, predicted_pixels, reconstruct
from .reconstruction_pictures import descent_figure, reconstruction_figure
from .recording import DescentRecord, record_descent
from .token_geometry import effective_rank, geometry_figure, mean_angle

__all__ = [
    "Animation",
    "Completion",
    "DescentRecord",
    "Picture",
    "Reconstruction",
    "all_pictures",
    "attention_figure",
    "complete",
    "completion_figure",
    "confusion_figure",
    "decoded_memories",
    "demo_images",
    "descent_animation",
    "descent_figure",
    "effective_rank",
    "energy_figure",
    "even_sample",
    "extract_features",
    "geometry_figure",
    "image_files",
    "knn_accuracy",
    "linear_probe_accuracy",
    "load_for_inspection",
    "load_for_reconstruction",
    "load_mask",
    "mean_angle",
    "memory_activations",
    "memory_effect_figure",
    "memory_figure",
    "most_active",
    "overview_figure",
    "predicted_pixels",
    "predictions_figure",
    "prepare_image",
    "random_masks",
    "reconstruct",
    "reconstruction_figure",
    "record_descent",
    "scaled_memories",
    "token_energy_figure",
]
