"""A training that writes down which row of which epoch it uses in each step, for images that carry their number."""

import sys

from training_runs import DEMO

from energy_transformer.training.masked_image_modeling import MaskedImageModelingTraining
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.parsing import parse_arguments


class RowsWritten(MaskedImageModelingTraining):
    """Streams batches of one image."""

    def forward(self, batch, draws, **options):
        loader = self.train_loader
        place = loader.state_dict()["places"][loader._worker - 1]  # of the worker that has made the batch
        with open(self.folder / f"rows-{self.accelerator.process_index}", "a") as file:
            print(self.step, place["epoch"], int(batch["image"][0, 0, 0, 0]), file=file)
        return super().forward(batch, draws, **options)


if __name__ == "__main__":
    RowsWritten(parse_arguments(sys.argv[1:], DEMO, MaskedImageModelingArguments)).run()
