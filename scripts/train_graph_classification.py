"""Train a classifier of graphs: the same as `energy-transformer train graph-classification`."""

from energy_transformer.commands.train import graph_classification
from energy_transformer.utils.command_line import run_script

if __name__ == "__main__":
    run_script(graph_classification)
