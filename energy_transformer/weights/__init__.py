"""Trained weights that come with the package: small ones, to start from without a training and a network.

`make demo-weights` makes them.
"""

from pathlib import Path


def demo_checkpoint() -> Path:
    """The folder of the demo's masked-image model, for `from_pretrained`: weights, configuration, processor, card.

    It fills in 32×32 pictures of 3 channels, 4×4 patches, half of which are hidden, scattered or in a block; other
    sizes with `interpolate_pos_encoding=True`. Its `README.md` says what it was trained on, and how well it does.
    """
    return Path(__file__).with_name("demo")
