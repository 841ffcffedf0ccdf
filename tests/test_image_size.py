"""A model and an image processor get another image size: for good, or as `from_pretrained` is told."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForImageClassification
from energy_transformer.conversion import resize
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor, load_image_processor, processor_sizes
from energy_transformer.data.pixels import output_size, resize_to_tensor


@pytest.fixture
def photo():
    return Image.fromarray(photograph("chelsea.png"))


@torch.no_grad()
@pytest.mark.parametrize("image_size", [32, (24, 16), [8, 40]])
def test_a_resized_model_is_the_interpolated_one_and_is_saved_so(small_model, image_size, tmp_path):
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    pixels = torch.rand(2, 3, *size) * 2 - 1
    mask = torch.rand(2, size[0] // 4 * (size[1] // 4)) < 0.5
    expected = small_model(pixels, bool_masked_pos=mask, interpolate_pos_encoding=True)
    assert resize(small_model, image_size) is small_model and small_model.config.image_height_width == size
    small_model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    for model in (small_model, loaded):
        outputs = model(pixels, bool_masked_pos=mask)
        assert torch.equal(outputs.reconstruction, expected.reconstruction) and outputs.loss == expected.loss
    assert AutoModel.from_pretrained(tmp_path).config.image_height_width == size


def test_a_resized_classifier_trains_positions_of_its_own(small_config):
    config = EnergyTransformerConfig.from_dict(small_config.to_dict() | {"num_labels": 3})
    model = resize(EnergyTransformerForImageClassification(config), 24)
    outputs = model(torch.rand(2, 3, 24, 24) * 2 - 1, labels=torch.tensor([0, 2]))
    outputs.loss.backward()
    positions = model.base_model.embeddings.position_embeddings
    assert positions.shape == (1, 36 + config.use_cls_token, 32) and positions.grad.abs().sum() > 0
    assert any(parameter is positions for parameter in model.parameters())


@pytest.mark.parametrize("image_size", [30, (16, 18), 0, (16, 16, 16), (-4, 16)])
def test_a_size_that_the_patches_do_not_tile_is_refused(small_model, image_size):
    with pytest.raises(ValueError, match=r"^image_size must be .* multiples of the patch size 4x4, got"):
        resize(small_model, image_size)
    assert small_model.config.image_height_width == (16, 24)


@pytest.mark.parametrize(
    ("size", "expected"),
    [({"height": 64, "width": 64}, (64, 64)), (48, (48, 48)), ({"height": 64, "width": 96}, (64, 96))],
)
@pytest.mark.parametrize("own", [(32, 32), (16, 24)])
def test_a_processor_takes_the_whole_image_to_the_size_that_it_is_told(own, size, expected, photo, tmp_path):
    build_image_processor(own).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, size=size)
    pixels = processor(photo, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, *expected)
    whole = np.asarray(photo.resize(expected[::-1], Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(pixels.numpy() - whole).max() < 2 / 127.5
    assert AutoImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="pt")["pixel_values"].shape[2:] == own


def test_training_sees_what_the_processor_makes(photo):
    processor = build_image_processor((32, 48))
    images = resize_to_tensor(photo, processor)
    pixels = processor(photo, return_tensors="pt")["pixel_values"][0]
    assert images.shape == (3, *output_size(processor)) == pixels.shape
    assert (images.float() / 127.5 - 1 - pixels).abs().max() < 2 / 127.5


def test_a_processor_of_an_earlier_version_still_crops_and_can_be_told_not_to(photo, tmp_path):
    build_image_processor((32, 32)).save_pretrained(tmp_path)
    old = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    cropping = load_image_processor(str(tmp_path), **old)
    assert output_size(cropping) == (32, 32)
    middle = photo.crop(((photo.width - photo.height) / 2, 0, (photo.width + photo.height) / 2, photo.height))
    expected = resize_to_tensor(middle, build_image_processor((32, 32)))
    assert (resize_to_tensor(photo, cropping).int() - expected.int()).abs().float().mean() < 2
    cropping.save_pretrained(tmp_path)
    whole = load_image_processor(str(tmp_path), **processor_sizes(64, 64))
    assert torch.equal(resize_to_tensor(photo, whole), resize_to_tensor(photo, build_image_processor((64, 64))))
