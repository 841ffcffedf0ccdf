"""Convert a foreign checkpoint: the same as `energy-transformer convert`."""

from energy_transformer.commands.convert import main
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(main)
