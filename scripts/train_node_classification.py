"""Train a classifier of the nodes of graphs: the same as `energy-transformer train node-classification`."""

from energy_transformer.commands.train import node_classification
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(node_classification)
