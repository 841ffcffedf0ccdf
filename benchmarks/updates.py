"""Train the demo's model with every kind of step, and draw the energy along the descent of held-out images.

python benchmarks/updates.py [--max_train_steps 2000] writes docs/images/energy_curves.png and prints a table.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import AutoModelForMaskedImageModeling

import energy_transformer  # noqa: F401
from energy_transformer.data.demo import load_demo_dataset
from energy_transformer.utils.command_line import OneLineErrors, run_script

ROOT = Path(__file__).parents[1]
UPDATES = {
    "plain": "",
    "learned sizes": "learnable_step_size=step",
    "learned sizes of channels": "learnable_step_size=channel",
    "momentum 0.5": "momentum=0.5,step_size=0.5",
    "temperature 1e-4": "temperature=1e-4",
    "gradient of the state": "descent_gradient=state",
}


def train(name: str, overrides: str, folder: Path, steps: int) -> float:
    """The error over the hidden pixels, of the mean color's."""
    script = ROOT / "scripts" / "train_masked_image_modeling.py"
    words = [f"--output_dir={folder}", "--overwrite_output_dir", f"--max_train_steps={steps}"]
    words += [f"--config_overrides={overrides}"] if overrides else []
    print(f"training: {name}", flush=True)
    subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "all_results.json").read_text())["eval_ratio_to_mean_color"]


@torch.no_grad()
def energies(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """(B, T + 1), over twice as many steps as it was trained with."""
    model = AutoModelForMaskedImageModeling.from_pretrained(folder).eval()
    return model(pixels, output_energies=True, num_steps=2 * model.config.num_steps).energies


def main(argv: list[str]) -> None:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("--max_train_steps", type=int, default=2000, help="Of each training (default: 2000).")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "updates", help="Where the models go.")
    args = parser.parse_args(argv)
    images = torch.stack(list(load_demo_dataset()["test"].with_format("torch")[:256]["image"]))
    pixels = images.float() / 127.5 - 1
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    print("| update | error, of the mean color's | steps at which the energy rose |\n| --- | ---: | ---: |")
    rows = []
    for name, overrides in UPDATES.items():
        folder = args.output_dir / name.replace(" ", "_")
        ratio = train(name, overrides, folder, args.max_train_steps)
        curve = energies(folder, pixels)
        trained = curve[:, : (curve.shape[1] - 1) // 2 + 1]
        rose = (trained.diff(dim=1) > 0).float().mean().item()
        rows.append(f"| {name} | {ratio:.3f} | {100 * rose:.1f} % |")
        share = (curve - curve[:, :1]) / curve[:, :1].abs()
        axes.plot(share.mean(0), label=name, marker=".")
    axes.axvline((curve.shape[1] - 1) // 2, color="gray", linestyle=":", linewidth=1)
    axes.set(xlabel="step (dotted: the last one of the training)", ylabel="energy, relative to its start")
    axes.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "energy_curves.png", dpi=110)
    print("\n".join(rows))


if __name__ == "__main__":
    run_script(main)
