"""Fill in what is hidden in an image: scripts/reconstruct.py CHECKPOINT IMAGE [--mask MASK]"""

from energy_transformer.commands.reconstruct import main
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(main)
