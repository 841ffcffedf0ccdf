"""Small models and a Hub for all tests."""

import pytest
import torch
from PIL import Image

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling

collect_ignore = ["conformance"]  # run by `make conformance`


@pytest.fixture
def small_config():
    return EnergyTransformerConfig(
        image_size=(16, 24),
        patch_size=4,
        hidden_size=32,
        num_attention_heads=3,
        head_dim=8,
        intermediate_size=48,
        num_steps=3,
        step_size=0.5,
        initialization="scaled",
    )


@pytest.fixture
def small_model(small_config):
    torch.manual_seed(0)
    return EnergyTransformerForMaskedImageModeling(small_config).eval()


@pytest.fixture
def beside_the_demo(tmp_path, monkeypatch):
    """A current folder with what the pages start from: outputs/demo, as `make train` makes it but untrained, and
    photo.jpg."""
    from energy_transformer.data.demo import photograph
    from energy_transformer.data.image_processing import build_image_processor

    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=32,
        patch_size=4,
        hidden_size=64,
        num_attention_heads=2,
        head_dim=32,
        intermediate_size=256,
        num_steps=3,
        step_size=1.0,
        learnable_beta=True,
        use_cls_token=False,
        initialization="scaled",
        hopfield_initializer_range=0.125,
        mask_ratio=0.5,
    )
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(tmp_path / "outputs" / "demo")
    build_image_processor((32, 32)).save_pretrained(tmp_path / "outputs" / "demo")
    Image.fromarray(photograph("coffee.png")).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """An empty Hub that the clients of this process and its children speak to, with an empty cache, not logged in."""
    from hub_server import HubServer
    from hub_server.client import point_clients

    server = HubServer()
    point_clients(monkeypatch, server, tmp_path_factory.mktemp("hf_home"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory):
    """A dataset in the layout of uoft-cs/cifar10."""
    from hub_server.cifar10 import write_cifar10

    return write_cifar10(tmp_path_factory.mktemp("cifar10"))
