"""FSDP2 by layer, in two processes, computes what one process does."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling


def build():
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, hidden_size=32, num_attention_heads=2, head_dim=16, intermediate_size=64,
        num_hidden_layers=2, num_steps=3, initialization="scaled", learnable_beta=True, hopfield_activation="softmax",
    )  # fmt: skip
    return EnergyTransformerForMaskedImageModeling(config)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 16, 16, generator=generator), torch.rand(4, 16, generator=generator) < 0.5


def work(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = build()
    model.scalars_to_vectors()
    for layer in model.base_model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pixels, mask = (tensor[2 * rank : 2 * rank + 2] for tensor in batch())
    model(pixels, bool_masked_pos=mask).loss.backward()
    optimizer.step()
    outputs = model(pixels, bool_masked_pos=mask, output_energies=True, output_hidden_states=True)
    weights = {name: weight.full_tensor() for name, weight in model.state_dict().items()}
    torch.save((outputs.loss.detach(), outputs.energies.detach()), f"{folder}/{rank}.pt")
    model.save_pretrained(folder, state_dict=weights, is_main_process=rank == 0)
    dist.barrier()
    dist.destroy_process_group()


def test_a_training_step_and_the_energies(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    model, (pixels, mask) = build(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    halves = slice(2), slice(2, 4)
    (sum(model(pixels[half], bool_masked_pos=mask[half]).loss for half in halves) / 2).backward()
    optimizer.step()
    for rank, half in enumerate(halves):
        loss, energies = torch.load(tmp_path / f"{rank}.pt")
        expected = model(pixels[half], bool_masked_pos=mask[half], output_energies=True)
        torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(energies, expected.energies, rtol=1e-5, atol=1e-4)
    saved = load_file(tmp_path / "model.safetensors")
    for name, weight in model.state_dict().items():  # the shapes of files, () for scalars
        torch.testing.assert_close(saved[name], weight, rtol=1e-4, atol=1e-6)
    again = EnergyTransformerForMaskedImageModeling.from_pretrained(tmp_path)
    again.scalars_to_vectors()
    again.load_state_dict(saved)
