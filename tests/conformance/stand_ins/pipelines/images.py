"""The pictures that the stand-ins of the pipeline tests give to a pipeline."""

import numpy as np
from PIL import Image


def random_image(height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pipeline_inputs() -> list[Image.Image]:
    """Of several sizes and modes, none of them the model's."""
    return [random_image(50, 70), random_image(64, 40, "L"), random_image(30, 30, "RGBA"), random_image(40, 41, "P")]
