"""Train a masked-image model: the same as `energy-transformer train masked-image-modeling`."""

from energy_transformer.commands.train import masked_image_modeling
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(masked_image_modeling)
