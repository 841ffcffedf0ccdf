"""See inside a model: scripts/inspect_model.py CHECKPOINT [IMAGE ...]"""

from energy_transformer.commands.inspect import main
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(main)
