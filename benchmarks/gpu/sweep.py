"""Part h: the time of the triton attention in other tiles than `kernels/tiles.py` chooses.

What wins here, on a device, is what that file should choose: it is written there by hand, so that no run has to search.
"""

import functools

import torch
from variants import available_backends

from .blocks import median_seconds
from .operators import SHAPES, inputs, ours
from .record import Row, Run

IN_TILES = [(64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 8, 2), (128, 64, 8, 2), (64, 128, 8, 2)]
WHOLE = {64: [(32, 64, 4, 1), (64, 64, 4, 1), (64, 64, 8, 1)], 256: [(16, 256, 8, 1), (32, 256, 8, 1), (64, 256, 8, 1)]}


def measured(run: Run, shape, tile, whole: bool, training: bool) -> Row:
    """One pass of which the tile is; the other pass keeps its own."""
    from energy_transformer.kernels import tiles

    query, key = inputs(shape, torch.bfloat16, run.device)
    attention, rounds = ours("triton"), 1 if run.quick else 11
    chosen = {"backward" if training else "forward": tiles.Tile(*tile)}
    if not training:
        with torch.no_grad(), tiles.pinned(whole=whole, **chosen):
            return {"ms": 1000 * median_seconds(lambda: attention(query, key), run.device, rounds)}
    query, key = query.detach().requires_grad_(), key.detach().requires_grad_()
    results = attention(query, key)
    upstream = [torch.randn_like(result) for result in results]

    def backward():
        with tiles.pinned(whole=whole, **chosen):
            torch.autograd.grad(results, (query, key), upstream, retain_graph=True)

    return {"ms": 1000 * median_seconds(backward, run.device, rounds)}


def run(run: Run) -> None:
    if "triton" not in available_backends():
        run.note("the triton backend cannot run here")
        return
    for name in ("ImageNet", "CIFAR", "long"):
        shape = SHAPES[name]
        longest = next((length for length in WHOLE if shape[2] <= length), None)
        kinds = [(tile, False) for tile in IN_TILES] + [(tile, True) for tile in WHOLE.get(longest or 0, [])]
        for training in (False, True):
            table = f"{name}, {'backward' if training else 'forward'}, in bfloat16"
            for tile, whole in kinds:
                names = {"(block, inner, warps, stages)": tile, "whole heads": whole}
                run.attempt(table, names, functools.partial(measured, run, shape, tile, whole, training))
