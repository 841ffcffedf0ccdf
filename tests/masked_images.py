"""A batch for the models of 16×24 pixels, and what a masked-image model makes of it."""

import torch


def images(batch=8):
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def some_mask(batch=8):
    return torch.rand(batch, 24, generator=torch.Generator().manual_seed(1)) < 0.5


def run(model):
    with torch.no_grad():
        return model(pixel_values=images(), bool_masked_pos=some_mask(), output_energies=True, output_attentions=True)
