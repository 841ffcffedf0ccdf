"""What ViTMAE's users complain about: hidden randomness, features of masked images, shapes other than squares."""

import pytest
import torch

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)

MODELS = [EnergyTransformerModel, EnergyTransformerForMaskedImageModeling, EnergyTransformerForImageClassification]


def images(*size):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(cls, **options):
    torch.manual_seed(0)
    options = {"image_size": 32, "patch_size": 4, "initialization": "scaled", "num_steps": 2} | options
    return cls(EnergyTransformerConfig(hidden_size=32, num_attention_heads=2, head_dim=8, **options)).eval()


@pytest.mark.parametrize("count", [0, 1, 40, 63, 64])
def test_any_number_of_patches_is_masked(count):
    model = build(MODELS[1])
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, torch.randperm(64, generator=torch.Generator().manual_seed(1))[:count]] = True
    mask[1, :7] = True
    both = model(images(32, 32), bool_masked_pos=mask)
    assert torch.equal(both.mask, mask) and both.loss.isfinite()
    for image in range(2):
        alone = model(images(32, 32)[image : image + 1], bool_masked_pos=mask[image : image + 1])
        torch.testing.assert_close(alone.reconstruction[0], both.reconstruction[image], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", MODELS)
@torch.no_grad()
def test_evaluation_has_no_hidden_randomness(cls):
    """Neither the seed nor the number of calls changes anything, and no random number is drawn."""
    model = build(cls)
    state = torch.get_rng_state()
    first = model(images(32, 32), return_dict=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    for a, b in zip(first, model(images(32, 32), return_dict=False), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_features_are_those_of_the_whole_image_in_training_mode_too():
    """ViTMAE's encoder drops random patches at every call; here only `bool_masked_pos` hides any."""
    model = build(MODELS[1])
    features = model.base_model(images(32, 32)).last_hidden_state
    assert features.shape == (2, 65, 32)
    assert torch.equal(model.base_model.train()(images(32, 32)).last_hidden_state, features)
    nothing = model.eval()(images(32, 32), bool_masked_pos=torch.zeros(2, 64, dtype=torch.bool))
    torch.testing.assert_close(model.decode(features), nothing.reconstruction)


@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("cls", MODELS)
@torch.no_grad()
def test_every_size_that_the_patch_size_divides(cls, cls_token):
    model = build(cls, image_size=(32, 48), patch_size=(4, 8), use_cls_token=cls_token)
    native = model(images(32, 48), return_dict=False)
    for a, b in zip(native, model(images(32, 48), interpolate_pos_encoding=True, return_dict=False), strict=True):
        assert torch.equal(a, b), "at its own size nothing is interpolated"
    for height in range(4, 44, 8):
        for width in range(8, 72, 16):
            outputs = model(images(height, width), interpolate_pos_encoding=True)
            if cls is EnergyTransformerForMaskedImageModeling:
                assert outputs.reconstruction.shape == (2, 3, height, width)
                assert outputs.mask.shape == (2, height // 4 * (width // 8))
    with pytest.raises(ValueError, match="not a multiple of the patch size 4x8"):
        model(images(32, 44), interpolate_pos_encoding=True)


def test_positions_are_interpolated_along_both_axes():
    """Codes of the row stay codes of the row, and codes of the column of the column, on a grid of another shape."""
    embeddings = build(EnergyTransformerModel, image_size=(32, 48)).embeddings
    rows, columns = embeddings.config.grid_size
    with torch.no_grad():
        place = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns)))
        embeddings.position_embeddings[0, 1:, :2] = place
    resized = embeddings.interpolate_pos_encoding((16, 6))
    assert torch.equal(resized[:, 0], embeddings.position_embeddings[:, 0])
    row_code, column_code = resized[0, 1:, :2].unflatten(0, (16, 6)).unbind(-1)
    torch.testing.assert_close(row_code, row_code[:, :1].expand(-1, 6), rtol=0, atol=1e-4)
    torch.testing.assert_close(column_code, column_code[:1].expand(16, -1), rtol=0, atol=1e-4)
    inner_rows, inner_columns = (torch.arange(16) + 0.5) / 2 - 0.5, (torch.arange(6) + 0.5) * 2 - 0.5
    # bicubic interpolation does not keep a straight line quite straight
    torch.testing.assert_close(row_code[4:-4, 0], inner_rows[4:-4], rtol=0, atol=0.1)
    torch.testing.assert_close(column_code[0, 1:-1], inner_columns[1:-1], rtol=0, atol=0.1)
