"""Push a finished output_dir to the Hub: the same as `energy-transformer push`."""

from energy_transformer.commands.push import main
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(main)
