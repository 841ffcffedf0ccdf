"""The operators of a step, and the bytes that they read and write: counted on a CPU, for a GPU that is not here.

    python benchmarks/traffic.py [--size ImageNet] [--batch 256] [--backend eager]

A table for inference and one for training in bfloat16 autocast, of a step of the descent. The bytes are those of whole
tensors, read and written once by each operator, as on a device whose caches hold none of them; they are counted with
one and two images, and grow with the images from there on.
"""

import argparse
from collections import defaultdict
from typing import NamedTuple

import torch
import variants
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "bmm", "addmm", "linear"}


class Counts(NamedTuple):
    calls: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def plus(self, other: "Counts", factor: float = 1.0) -> "Counts":
        return Counts(*(mine + factor * theirs for mine, theirs in zip(self, other, strict=True)))


class Traffic(TorchDispatchMode):
    """What each operator reads and writes; those that return a view of what they are given move nothing."""

    def __init__(self):
        super().__init__()
        self.counts: dict[str, Counts] = defaultdict(Counts)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = _tensors((args, kwargs)), _tensors(result)
        in_place = func.overloadpacket.__name__.endswith("_")
        homes = {tensor.untyped_storage().data_ptr() for tensor in given}
        if in_place or any(tensor.untyped_storage().data_ptr() not in homes for tensor in made):
            one = Counts(1, sum(map(_bytes, given)), sum(map(_bytes, made)))
            name = func.overloadpacket.__name__
            self.counts[name] = self.counts[name].plus(one)
        return result


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def counted(block: nn.Module, size: variants.Size, steps: int, images: int, training: bool) -> dict[str, Counts]:
    x = torch.randn(images, size.tokens, size.dim, requires_grad=training)
    with Traffic() as traffic, torch.set_grad_enabled(training):
        with torch.autocast("cpu", torch.bfloat16):
            state = block(x, n_iters=steps)
        if training:
            state.square().mean().backward()
    return traffic.counts


def of_a_step(backend: str, size: variants.Size, batch: int, training: bool) -> dict[str, Counts]:
    """By operator, from two more steps and one more image."""
    block = variants.build(backend, size, torch.device("cpu"))

    def step(images: int) -> dict[str, Counts]:
        few, many = (counted(block, size, steps, images, training) for steps in (2, 4))
        return {name: many[name].plus(few.get(name, Counts()), -1) for name in many}

    one, two = step(1), step(2)
    found = {}
    for name in two:
        more = two[name].plus(one[name], -1)
        grown = one[name].plus(more, batch - 1)
        found[name] = Counts(two[name].calls / 2, grown.read / 2, grown.written / 2)
    return {name: counts for name, counts in found.items() if counts.calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=variants.SIZES, default="ImageNet", help="Widths (default: ImageNet).")
    parser.add_argument("--batch", type=int, default=256, help="Images of a batch (default: 256).")
    parser.add_argument("--backend", default="eager", help="Of the attention (default: eager).")
    args = parser.parse_args()
    for training in (False, True):
        print(f"\n{args.size} size, batch {args.batch}, {args.backend}, {'training' if training else 'inference'}\n")
        print("| operator | calls | GB read | GB written |\n| --- | ---: | ---: | ---: |")
        found = of_a_step(args.backend, variants.SIZES[args.size], args.batch, training)
        others = {name: counts for name, counts in found.items() if name not in PRODUCTS}
        for name, counts in sorted(found.items(), key=lambda item: -item[1].written):
            print(f"| {name} | {counts.calls:.1f} | {counts.read / 1e9:.2f} | {counts.written / 1e9:.2f} |")
        for name, part in (("**all**", found), ("**all but products**", others)):
            total = Counts()
            for counts in part.values():
                total = total.plus(counts)
            print(f"| {name} | {total.calls:.1f} | {total.read / 1e9:.2f} | {total.written / 1e9:.2f} |")


if __name__ == "__main__":
    main()
