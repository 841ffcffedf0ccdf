"""Part e: the recipes with their data: the demo's through its command, CIFAR's on made-up images of its shape."""

import importlib.util
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from tempfile import TemporaryDirectory

import torch

from energy_transformer import EnergyTransformerForMaskedImageModeling
from energy_transformer.data.augmentation import Augmentation
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.data.pixels import normalize
from energy_transformer.data.sampling import StepSampler
from energy_transformer.masking import draw_masks
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.model_configuration import configure
from energy_transformer.training.monitoring import StepTimer
from energy_transformer.training.optimization import build_optimizer, build_schedule
from energy_transformer.training.parsing import parse_arguments

from .record import Row, Run
from .tests_as_rows import ROOT

# how a run of the CIFAR recipe is compiled
WAYS = {"uncompiled": None, "compiled": "default", "CUDA graphs": "reduce-overhead"}


def demo(run: Run) -> Row:
    """The real command, for some hundreds of steps."""
    lacking = [name for name in ("accelerate", "datasets", "skimage") if not importlib.util.find_spec(name)]
    if lacking:
        return {"result": f"missing: {', '.join(lacking)}"}
    steps = 4 if run.quick else 600
    with TemporaryDirectory() as folder:
        command = [
            sys.executable, str(ROOT / "scripts" / "train_masked_image_modeling.py"), "--config", "demo",
            "--output_dir", folder, "--overwrite_output_dir", "--max_train_steps", str(steps),
            *(["--cpu"] if run.device.type == "cpu" else ["--mixed_precision", "bf16"]),
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr[-1500:])
        with open(f"{folder}/all_results.json") as file:
            results = json.load(file)
    return {
        "steps": steps,
        "images/s": results["train_samples_per_second"],
        "data in %": 100 * results["train_data_wait_share"],
        "loss": results["train_loss"],
        "seconds with start and end": time.perf_counter() - started,
    }


class CifarRecipe:
    """The training of `configuration/training/cifar10.yaml` on images that are made up, all of them held in memory."""

    def __init__(self, run: Run, compiled: str | None):
        words = ["--config", "cifar10", "--output_dir", str(run.folder / "unused")]
        if run.quick:
            words += ["--per_device_train_batch_size", "8"]
        self.args = parse_arguments(words, None, MaskedImageModelingArguments)
        args, self.device = self.args, run.device
        self.config = configure(
            args, mask_ratio=args.mask_ratio, mask_replace_probability=args.mask_replace_probability
        )
        self.images = torch.randint(0, 256, (512 if run.quick else 50_000, 3, 32, 32), dtype=torch.uint8)
        self.sampler = StepSampler(len(self.images), args.per_device_train_batch_size, 1, args.seed)
        self.augment = Augmentation(horizontal_flip=args.horizontal_flip)
        self.processor = build_image_processor((32, 32))
        torch.manual_seed(args.seed)
        self.model = EnergyTransformerForMaskedImageModeling(self.config).to(run.device).train()
        self.called = torch.compile(self.model, mode=compiled) if compiled else self.model
        self.optimizer = build_optimizer(self.model, args)
        self.schedule = build_schedule(self.optimizer, args, 10_000)
        self.generator = torch.Generator(run.device).manual_seed(args.seed)

    def batch(self, indices: list[int]) -> torch.Tensor:
        """uint8 images (B, 3, 32, 32) on the device."""
        images = self.images[torch.tensor(indices) % len(self.images)]
        if self.device.type == "cuda":
            images = images.pin_memory()
        return images.to(self.device, non_blocking=True)

    def step(self, images: torch.Tensor) -> torch.Tensor:
        config, count = self.config, len(images)
        draw = {"generator": self.generator, "device": self.device}
        images = self.augment(images, torch.rand(count, Augmentation.num_uniform, **draw))
        rows, columns = config.grid_size
        noise = torch.rand(count, rows * columns, **draw)
        masks = draw_masks(
            config.mask_type, noise, config.grid_size, config.mask_ratio, config.mask_replace_probability
        )
        with torch.autocast(self.device.type, torch.bfloat16):
            pixels = normalize(images, self.processor)
            loss = self.called(pixels, bool_masked_pos=masks[0], bool_corrupted_pos=masks[1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach().clone()

    def run(self, seconds: float) -> Row:
        """Steps for that long, after some that are not counted."""
        batches, loss = iter(self.sampler), torch.zeros(())
        for _ in range(3):
            loss = self.step(self.batch(next(batches)))
        first, timer, begun = loss.item(), StepTimer(self.device), time.perf_counter()
        while time.perf_counter() - begun < seconds:
            for _ in range(10):
                with ExitStack() as stack:
                    stack.enter_context(timer.step())
                    with timer.data():
                        images = self.batch(next(batches))
                    loss = self.step(images)
            timer.settle()
        return {
            "steps": timer.steps,
            "images/s": timer.steps * self.args.per_device_train_batch_size / timer.seconds,
            "ms a step": 1000 * timer.seconds / timer.steps,
            "data in %": 100 * timer.data_share,
            "first loss": first,
            "last loss": loss.item(),
        }


def run(run: Run) -> None:
    run.attempt("the demo's recipe", {"images": "embedded photographs"}, lambda: demo(run))
    for way, compiled in WAYS.items():
        for backend in ("auto", "triton"):
            if run.quick and (compiled or backend == "triton"):
                continue
            if backend == "triton" and run.device.type != "cuda":
                continue
            run.attempt(
                "the CIFAR recipe in bf16, images made up",
                {"way": way, "backend": backend},
                lambda compiled=compiled, backend=backend: cifar(run, compiled, backend),
            )


def cifar(run: Run, compiled: str | None, backend: str) -> Row:
    recipe = CifarRecipe(run, compiled)
    recipe.model.set_attn_implementation(backend)
    row = recipe.run(0.5 if run.quick else 25.0)
    torch.compiler.reset()
    return row
