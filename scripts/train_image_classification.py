"""Train an image classifier: the same as `energy-transformer train image-classification`."""

from energy_transformer.commands.train import image_classification
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(image_classification)
