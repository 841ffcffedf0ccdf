"""How strong an Energy Transformer is beside a transformer of its size, and which lever does what.

python benchmarks/strength.py --task mnist5k [--models "both" "looped transformer"] [--seeds 5]

All contestants have the same patches, head, data order, augmentation, optimizer and schedule. The rate of each is the
best of a grid, by validation on a fifth of the training set after training on the rest. While the best is at an end of
the grid, the grid grows there. Then each is trained on the whole training set with every seed, and tested once. A run
is a file, and one that has a file is not made again: a table can be made in several sittings. The page
`benchmarks/results/strength.md` and its plot are made of these files.

The photographs' crops overlap, so that their validation images are much like those of the training.
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import contestants
import torch
from measure import peak_bytes
from strength_measures import along_the_steps, rises_by_step_size
from strength_report import write_report
from torch import Tensor, nn

from energy_transformer.data.loading import EMBEDDED
from energy_transformer.masking import draw_masks, fixed_noise
from energy_transformer.utils.command_line import OneLineErrors, run_script
from energy_transformer.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "strength"
SELECTION_SEED = 100
MOST_RATES = 7


@dataclasses.dataclass(frozen=True)
class Task:
    """What all contestants share. `shift` is the largest random translation in pixels."""

    dataset: str
    kind: str
    epochs: int
    options: dict
    batch: int = 64
    shift: int = 0
    flip: bool = False
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    weight_decay: float = 0.05


_SMALL = {
    "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 256, "num_steps": 12,
    "step_size": 0.5, "initialization": "scaled", "hopfield_initializer_range": 0.125, "learnable_beta": True,
}  # fmt: skip
_PHOTOGRAPHS = _SMALL | {"image_size": 32, "patch_size": 4}
TASKS = {
    "mnist5k": Task(
        "mnist5k",
        "classification",
        20,
        _SMALL | {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_labels": 10},
        shift=2,
    ),
    "demo": Task("demo", "classification", 15, _PHOTOGRAPHS | {"num_labels": 8}, shift=4, flip=True),
    "demo_masked": Task(
        "demo",
        "masked modeling",
        30,
        _PHOTOGRAPHS | {"num_steps": 3, "step_size": 1.0, "mask_ratio": 0.5, "mask_replace_probability": 1.0},
        flip=True,
    ),
}


def load(task: Task) -> dict[str, tuple[Tensor, Tensor]]:
    """Pixels (B, C, H, W) in [−1, 1] and labels (B,) of `train` and `test`, and of the parts of `train` for choosing
    a rate: every fifth image validates."""
    splits = {}
    for name, rows in EMBEDDED[task.dataset]().with_format("torch").items():
        pixels = torch.stack(list(rows["image"])).float() / 127.5 - 1
        splits[name] = pixels, torch.as_tensor(rows["label"][:])
    fifth = torch.arange(len(splits["train"][0])) % 5 == 4
    splits["part"] = tuple(tensor[~fifth] for tensor in splits["train"])
    splits["validation"] = tuple(tensor[fifth] for tensor in splits["train"])
    return splits


def augment(pixels: Tensor, task: Task, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `task.shift` pixels, and flipped at random if the task says so."""
    if task.shift:
        height, width = pixels.shape[2:]
        padded = nn.functional.pad(pixels, [task.shift] * 4, mode="replicate")
        top, left = torch.randint(0, 2 * task.shift + 1, (2, len(pixels)), generator=generator)
        pixels = torch.stack(
            [image[:, y : y + height, x : x + width] for image, y, x in zip(padded, top, left, strict=True)]
        )
    if task.flip:
        flipped = torch.rand(len(pixels), generator=generator) < 0.5
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
    return pixels


def inputs_of(
    task: Task, pixels: Tensor, labels: Tensor, generator: torch.Generator | None = None, first: int = 0
) -> dict:
    """The arguments of the model; a mask is drawn, or without a generator that of the image's number, which is `first`
    for the first."""
    if task.kind == "classification":
        return {"pixel_values": pixels, "labels": labels}
    grid = (task.options["image_size"] // task.options["patch_size"],) * 2
    count = grid[0] * grid[1]
    if generator is None:
        noise = fixed_noise(torch.arange(first, first + len(pixels)), count)
    else:
        noise = torch.rand(len(pixels), count, generator=generator)
    masked, _ = draw_masks("scatter", noise, grid, task.options["mask_ratio"], 1.0)
    return {"pixel_values": pixels, "bool_masked_pos": masked}


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """No decay of vectors, numbers, positions and learned step sizes."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.ndim > 1 and not name.endswith(("position_embeddings", "step_size"))]
    others = [p for name, p in named if p.ndim <= 1 or name.endswith(("position_embeddings", "step_size"))]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def train(model: nn.Module, task: Task, data: tuple[Tensor, Tensor], rate: float, seed: int) -> dict:
    """Train in place: the mean loss of the last epoch, and the processor's seconds of a step."""
    generator = torch.Generator().manual_seed(seed)
    steps = task.epochs * (len(data[0]) // task.batch)
    optimizer = torch.optim.AdamW(_groups(model, task.weight_decay), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    start, losses = time.process_time(), []
    for _ in range(task.epochs):
        order = torch.randperm(len(data[0]), generator=generator)
        losses = []
        for chosen in order.split(task.batch)[: len(order) // task.batch]:
            pixels = augment(data[0][chosen], task, generator)
            loss = model(**inputs_of(task, pixels, data[1][chosen], generator)).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return {"train_loss": statistics.fmean(losses), "seconds": (time.process_time() - start) / steps}


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: tuple[Tensor, Tensor], num_steps: int | None = None) -> dict:
    """`score`: the accuracy, or the error over the hidden pixels, of that of the mean color of the visible ones; and
    for an energy model the share of (image, step) at which the energy rises."""
    model.eval()
    transformer = isinstance(model.energy_transformer.layers[0], contestants.Transformer)
    options = {} if num_steps is None else {"num_steps": num_steps}
    options |= {} if transformer else {"output_energies": True}
    correct, error, baseline, rises, pairs = 0, 0.0, 0.0, 0, 0
    for first in range(0, len(data[0]), 250):
        pixels, labels = (tensor[first : first + 250] for tensor in data)
        given = inputs_of(task, pixels, labels, first=first)
        outputs = model(**given, **options)
        if task.kind == "classification":
            correct += (outputs.logits.argmax(-1) == labels).sum().item()
        else:
            error += outputs.loss.item() * len(pixels)
            baseline += _mean_color_error(given["bool_masked_pos"], pixels, task) * len(pixels)
        if not transformer:
            rose = outputs.energies.diff(dim=1) > 0
            rises, pairs = rises + rose.sum().item(), pairs + rose.numel()
    score = correct / len(data[0]) if task.kind == "classification" else error / baseline
    return {"score": score, "rises": rises / pairs if pairs else None, "pairs": pairs}


def _mean_color_error(masked: Tensor, pixels: Tensor, task: Task) -> float:
    """The mean squared error of filling the hidden patches with the mean color of the visible ones."""
    patch, grid = task.options["patch_size"], task.options["image_size"] // task.options["patch_size"]
    hidden = masked.unflatten(1, (grid, grid)).repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    visible = (~hidden).expand_as(pixels)
    mean = (pixels * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
    return ((pixels - mean).square() * hidden).sum().item() / (hidden.sum().item() * pixels.shape[1])


def one_run(folder: Path, task_name: str, model_name: str, rate: float, seed: int, test: bool, quick: bool) -> dict:
    """Train and evaluate, unless the file of this run is there."""
    task, part = TASKS[task_name], "test" if test else "validation"
    name = f"{model_name.replace(', ', '_').replace(' ', '_')}-{part}-{rate:g}-{seed}.json"
    file = folder / task_name / (f"quick-{name}" if quick else name)
    if file.exists():
        return json.loads(file.read_text())
    data = load(task)
    if quick:
        task = dataclasses.replace(task, epochs=1)
        data = {name: (pixels[:128], labels[:128]) for name, (pixels, labels) in data.items()}
    model = contestants.build(model_name, task.kind, task.options, seed)
    found = {"task": task_name, "model": model_name, "rate": rate, "seed": seed, "part": part}
    found |= {"parameters": contestants.count_parameters(model), "torch": torch.__version__}
    batch = inputs_of(task, *(tensor[: task.batch] for tensor in data["train"]), torch.Generator().manual_seed(0))
    found["bytes"] = peak_bytes(lambda: model(**batch).loss.backward(), torch.device("cpu"))
    model.zero_grad()
    found |= train(model, task, data["train" if test else "part"], rate, seed)
    found |= evaluate(model, task, data[part])
    if test and model_name != "transformer of T layers":  # which has no layers for more steps
        steps = task.options["num_steps"]
        longer = {count: evaluate(model, task, data[part], count) for count in (steps * 2, steps * 3, steps * 4)}
        found["longer"] = {count: {"score": each["score"], "rises": each["rises"]} for count, each in longer.items()}
    if test:
        few = inputs_of(task, *(tensor[:250] for tensor in data[part]))
        found["along_the_steps"] = along_the_steps(model, few)
        if found["pairs"]:
            found["rises_by_step_size"] = rises_by_step_size(model, few)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    print(f"{task_name}, {model_name}, rate {rate:g}, seed {seed}: {part} {found['score']:.3f}", flush=True)
    return found


def best_rate(validate: Callable[[float], dict], rates: tuple[float, ...], better: Callable) -> float:
    """The rate of the best score in a grid, which grows by factors of two where its best rate is an end of it."""
    tried: dict[float, float] = {}
    while True:
        tried |= {rate: validate(rate)["score"] for rate in rates if rate not in tried}
        best = better(tried, key=tried.__getitem__)
        if len(tried) >= MOST_RATES or min(tried) < best < max(tried):
            return best
        rates = (2 * best if best == max(tried) else best / 2,)


def main(argv: list[str]) -> None:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS, help="Default: all.")
    parser.add_argument(
        "--models", nargs="+", default=list(contestants.CONTESTANTS), choices=contestants.CONTESTANTS,
        help="Default: all.",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="Of the tested trainings of each model (default: 5).")
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="Of the runs; the page lies beside it.")
    parser.add_argument("--quick", action="store_true", help="A trial: one epoch of 128 images.")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for name in args.task:
        better = max if TASKS[name].kind == "classification" else min
        for model in args.models:
            run = functools.partial(one_run, args.output_dir, name, model, quick=args.quick)
            validate = functools.partial(run, seed=SELECTION_SEED, test=False)
            rate = best_rate(validate, TASKS[name].rates, better)
            for seed in range(args.seeds):
                run(rate, seed, test=True)
            write_report(args.output_dir)


if __name__ == "__main__":
    run_script(main)
