"""What `torch.compile` takes for few and many steps of a descent, and how fast the graphs are.

python benchmarks/compile_time.py [--steps 12 48] prints a table: seconds until the first training step is done, and
milliseconds of a later one, uncompiled and compiled, on one thread.
"""

import argparse
import statistics
import time

import torch

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling


def model_of(steps: int) -> EnergyTransformerForMaskedImageModeling:
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=32, patch_size=4, hidden_size=256, num_attention_heads=8, head_dim=32, intermediate_size=1024,
        num_steps=steps, initialization="scaled",
    )  # fmt: skip
    return EnergyTransformerForMaskedImageModeling(config)


def seconds(function, rounds: int = 1) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[12, 48], help="Numbers of steps (default: 12 48).")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pixels, mask = torch.randn(4, 3, 32, 32), torch.rand(4, 64) < 0.5
    warm = torch.compile(lambda x: x.sin().sum(), fullgraph=True)
    warm(torch.randn(8, requires_grad=True)).backward()  # what a process pays once
    print("| steps | first step | uncompiled | compiled |\n| ---: | ---: | ---: | ---: |")
    for steps in args.steps:
        model = model_of(steps)
        compiled = torch.compile(model, fullgraph=True)
        plain, fast = (lambda f=f: f(pixels, bool_masked_pos=mask).loss.backward() for f in (model, compiled))
        first = seconds(fast)
        print(f"| {steps} | {first:.1f} s | {1000 * seconds(plain, 5):.0f} ms | {1000 * seconds(fast, 5):.0f} ms |")
        torch.compiler.reset()


if __name__ == "__main__":
    main()
