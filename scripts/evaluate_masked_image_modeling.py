"""Measure a masked-image model: the same as `energy-transformer evaluate`."""

from energy_transformer.commands.evaluate import main
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(main)
