"""Put a finished run of the demo's recipe in the place of the weights in the package, with its card."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate import Accelerator
from huggingface_hub import ModelCard

from energy_transformer import demo_checkpoint
from energy_transformer.hub.cards import load_card, write_card
from energy_transformer.training.checkpoint_evaluation import evaluate_checkpoint
from energy_transformer.training.checkpoint_evaluation_arguments import EvaluationArguments
from energy_transformer.utils.command_line import OneLineErrors, run_script
from energy_transformer.utils.errors import UserError
from energy_transformer.utils.files import atomic_path, write_json

NAME = "energy-transformer-demo"
FILES = ("model.safetensors", "preprocessor_config.json", "all_results.json")
COMES_WITH_THE_PACKAGE = """These weights come with the package, so that they load without a network.
Their folder holds no code; `save_pretrained` of the loaded model writes it beside the weights.

```python
from energy_transformer import demo_checkpoint
from transformers import AutoModelForMaskedImageModeling

model = AutoModelForMaskedImageModeling.from_pretrained(demo_checkpoint())
```

"""


def measure(folder: Path) -> dict:
    """The report of [`evaluate_checkpoint`] that the card shows: scattered and block masks, on the CPU."""
    return evaluate_checkpoint(str(folder), EvaluationArguments(cpu=True), Accelerator(cpu=True))


def errors_of(report: dict) -> dict[tuple[str, int], dict[str, float]]:
    """The masked error of each prediction, by the kind of the mask and the number of hidden patches."""
    errors: dict[tuple[str, int], dict[str, float]] = {}
    for row in report["results"]:
        errors.setdefault((row["mask_type"], row["hidden_patches"]), {})[row["prediction"]] = row["masked_mse"]
    return errors


def table(report: dict) -> str:
    """The rows that the card has for each kind and size of mask."""
    lines = ["| hidden patches | this model | mean color | neighbor average |", "| --- | --- | --- | --- |"]
    for (kind, hidden), error in errors_of(report).items():
        figures = " | ".join(f"{error[name]:.6f}" for name in ("model", "mean_color", "neighbor_average"))
        lines.append(f"| {hidden} of {report['patches']}, {kind} | {figures} |")
    return "\n".join(lines)


def write_whole_card(folder: Path, report: dict) -> None:
    """The card of a run, with what is true of these weights alone: where they lie, and their error for each mask."""
    text = str(load_card(write_card(folder)))
    text = text.replace("## How to use\n\n", f"## How to use\n\n{COMES_WITH_THE_PACKAGE}", 1)
    text = text.replace(
        "## Training\n",
        f"By the kind of the mask (`energy-transformer evaluate`):\n\n{table(report)}\n\n## Training\n",
        1,
    )
    ModelCard(text).save(folder / "README.md")


def main(argv: list[str]) -> None:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("output_dir", type=Path, help="Folder of the finished run.")
    source = parser.parse_args(argv).output_dir
    report = measure(source)
    for (kind, hidden), error in errors_of(report).items():
        if error["model"] >= error["mean_color"]:
            raise UserError(
                f"output_dir {source} is no better than the mean color for {hidden} hidden patches ({kind}): "
                f"{error['model']:.5f} and {error['mean_color']:.5f}"
            )
    with TemporaryDirectory() as temporary:
        staged = Path(temporary) / NAME  # which the card takes as its title
        staged.mkdir()
        for name in FILES:
            shutil.copyfile(source / name, staged / name)
        config = json.loads((source / "config.json").read_text())
        del config["auto_map"]  # the code is that of the package
        write_json(staged / "config.json", config)
        write_whole_card(staged, report)
        demo_checkpoint().mkdir(exist_ok=True)
        for path in staged.iterdir():
            with atomic_path(demo_checkpoint() / path.name) as whole:
                shutil.copyfile(path, whole)
    print(f"{table(report)}\n\nweights: {demo_checkpoint()}")


if __name__ == "__main__":
    run_script(main)
