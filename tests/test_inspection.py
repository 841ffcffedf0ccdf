"""Pictures of what a model does, and the numbers behind them."""

import io
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from masked_images import images, some_mask
from PIL import Image

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
)
from energy_transformer.commands.inspect import main as inspect_command
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.inspection import (
    Animation,
    attention_figure,
    decoded_memories,
    descent_animation,
    descent_figure,
    effective_rank,
    energy_figure,
    even_sample,
    geometry_figure,
    mean_angle,
    memory_activations,
    memory_effect_figure,
    memory_figure,
    overview_figure,
    reconstruct,
    reconstruction_figure,
    record_descent,
    scaled_memories,
    token_energy_figure,
)
from energy_transformer.inspection.memories import hopfield_term
from energy_transformer.utils.errors import UserError

PROCESSOR = build_image_processor((16, 24))
OF_ALL_MODELS = {"energy", "token_energies", "token_energies_attention", "token_energies_hopfield", "token_geometry"}
OF_ALL_MODELS |= {"attention", "memories"}
OF_MASKED_MODELS = {"overview", "reconstructions", "descent", "memories_switched_off"}


@pytest.fixture
def deep_model(small_config):
    """Two blocks of two and three steps."""
    torch.manual_seed(0)
    options = small_config.to_dict() | {"num_hidden_layers": 2, "num_steps": [2, 3]}
    return EnergyTransformerForMaskedImageModeling(type(small_config)(**options)).eval()


@pytest.fixture
def result(small_model):
    return reconstruct(small_model, PROCESSOR, images(3), some_mask(3), attentions=True)


def opened(picture):
    image = Image.open(io.BytesIO(picture._repr_png_()))
    image.load()
    return image


@pytest.mark.parametrize("which", ["small_model", "deep_model"])
def test_the_record_is_that_of_the_model(which, request):
    model = request.getfixturevalue(which)
    options = {"output_energies": True, "output_energy_parts": True, "output_attentions": True}
    outputs = model(images(3), bool_masked_pos=some_mask(3), **options)
    record = record_descent(model, PROCESSOR, images(3), some_mask(3), attentions=True)
    torch.testing.assert_close(record.energies, outputs.energies)
    for term in ("attention", "hopfield"):
        torch.testing.assert_close(record.energy_of(term), outputs.energy_parts[term])
    torch.testing.assert_close(record.energy_map(), record.on_grid(outputs.energy_parts.tokens))
    ending = model.base_model(images(3), bool_masked_pos=some_mask(3)).last_hidden_state
    torch.testing.assert_close(record.tokens[-1], ending)
    assert torch.equal(record.attentions, torch.stack(outputs.attentions)) and torch.equal(record.mask, some_mask(3))
    with pytest.raises(ValueError, match="term must be one of attention, hopfield, got 'hopfeld'"):
        record.energy_of("hopfeld")


@pytest.mark.parametrize("which", ["small_model", "deep_model"])
def test_a_mask_in_any_form_gives_the_same_reconstruction(which, request):
    model = request.getfixturevalue(which)
    pixels = some_mask(3).unflatten(1, (4, 6)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    first, second = (reconstruct(model, PROCESSOR, images(3), mask) for mask in (some_mask(3), pixels.numpy()))
    assert torch.equal(first.prediction, second.prediction) and torch.equal(first.mask, second.mask)
    torch.testing.assert_close(first.frames[-1], first.prediction)
    with pytest.raises(ValueError, match="must hold booleans"):
        reconstruct(model, PROCESSOR, images(3), pixels * 255)


def test_a_picture_shows_itself_without_pyplot(tmp_path):
    code = (
        "import sys; from energy_transformer.inspection.pictures import Picture\n"
        "picture = Picture(2, 1, {'x': [1.0]}); picture.subplots().plot([1, 2])\n"
        "assert picture._repr_png_()[:4] == b'\\x89PNG' and 'matplotlib.pyplot' not in sys.modules\n"
        f"picture.save({str(tmp_path / 'new' / 'a.png')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert Image.open(tmp_path / "new" / "a.png").size == (300, 150)


def test_the_numbers_behind_the_pictures(result, small_model):
    energies = energy_figure(result).values["energies"]
    np.testing.assert_allclose(energies[0], energies[1:].sum(0), rtol=1e-4)
    maps = token_energy_figure(result, "hopfield").values["token_energies"]
    assert maps.shape == (3, 4, 4, 6)
    cls_energy = result.token_energies["hopfield"][..., 0].numpy()
    np.testing.assert_allclose(maps.sum((2, 3)) + cls_energy, energies[2], rtol=1e-4)
    weights = attention_figure(result, image=1, patch=(2, 5)).values["attentions"]
    np.testing.assert_array_equal(weights[:, 0].reshape(3, 24), result.attentions[0, 1, :, 1 + 2 * 6 + 5, 1:])
    errors = reconstruction_figure(result, {"gray": torch.full_like(result.images, 0.5)}).values["errors"]
    assert errors.shape == (2, 3)
    np.testing.assert_allclose(descent_figure(result).values["errors"][:, -1], errors[0], rtol=1e-5)
    changes = geometry_figure(result).values["changes"]
    g = result.tokens
    np.testing.assert_allclose(changes[2, 1], (g[2, 2] - g[1, 2]).norm() / g[1, 2].norm(), rtol=1e-5)
    assert overview_figure(result, 2).values["token_energies"].shape == (4, 4, 6)


def test_what_is_written_on_the_pictures(result):
    texts = [axis.get_xlabel() for axis in descent_figure(result, 1).axes]
    error = result.errors(result.frames)[:, 0].tolist()
    change = (result.energies[0, 3] - result.energies[0, 0]).item()
    assert texts[2].startswith(f"error {error[0]:.4f}\nE = ") and texts[-1].startswith(f"error {error[3]:.4f}\nΔE ")
    assert texts[-1].replace("−", "-").endswith(f"{change:+,.0f}")
    picture = attention_figure(result, patch=(0, 0))
    assert "row 0, column 0" in picture.get_suptitle() and "at the CLS token" in picture.get_suptitle()


def test_a_line_stands_between_the_blocks(deep_model, result):
    record = record_descent(deep_model, PROCESSOR, images(3), some_mask(3))
    steps = deep_model.config.steps_of_blocks
    assert record.block_starts == (0, steps[0]) and result.block_starts == (0,)
    axis, plain = energy_figure(record).axes[0], energy_figure(result).axes[0]
    assert [text.get_text() for text in axis.texts] == ["block 1", "2"] and not plain.texts
    upright = [line.get_xdata()[0] for line in axis.lines if list(line.get_ydata()) == [0, 1]]
    assert upright == [steps[0] - 0.5]


def test_images_are_drawn_at_their_own_resolution():
    from energy_transformer.inspection.pictures import image_grid

    picture = image_grid([[torch.rand(3, 300, 500)] * 2], ["a", "b"], [["", ""]], {})
    picture.pixels()
    for axis in picture.axes:
        box = axis.get_window_extent()
        assert box.width >= 500 and box.height >= 300


def test_mistakes_in_attention_pictures(result, small_model):
    with pytest.raises(ValueError, match=r"row and a column of the grid of 4x6 patches, got \(4, 0\)"):
        attention_figure(result, patch=(4, 0))
    without = record_descent(small_model, PROCESSOR, images(1))
    with pytest.raises(ValueError, match="attentions=True"):
        attention_figure(without)


def test_no_step_at_all_can_be_drawn(small_model):
    result = reconstruct(small_model, PROCESSOR, images(1), some_mask(1), num_steps=0)
    for figure in (energy_figure, token_energy_figure, geometry_figure, descent_figure, overview_figure):
        assert opened(figure(result)).width > 300


def test_rank_and_angle_of_known_tokens():
    assert effective_rank(torch.eye(5)[None]).item() == pytest.approx(5)
    line = torch.ones(4, 1) * torch.tensor([1.0, 2.0, 3.0])
    assert effective_rank(line).item() == pytest.approx(1, abs=1e-3)
    assert mean_angle(line).item() == pytest.approx(0, abs=0.1)
    assert mean_angle(torch.eye(3)).item() == pytest.approx(90)
    assert mean_angle(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item() == pytest.approx(45, abs=1e-3)


def test_activations_are_those_that_pull(deep_model):
    for block, end in ((0, 2), (1, 5)):
        found = memory_activations(deep_model, images(2), block)
        states = deep_model(images(2), bool_masked_pos=torch.zeros(2, 24).bool(), output_hidden_states=True)
        layer = deep_model.energy_transformer.layers[block]
        g = layer.norm(states.hidden_states[end])
        torch.testing.assert_close(found, (g @ layer.hopfield.W).relu()[:, 1:])
    with pytest.raises(ValueError, match=r"block must lie in \[0, 2\), got 2"):
        memory_activations(deep_model, images(1), 2)


def test_activations_of_normalized_memories_are_their_part_in_the_gradient(small_config):
    """Through the Jacobian of the normalization: the pull along W alone gives the step of the Hopfield term."""
    options = {"hopfield_norm": True, "energy_terms": ["hopfield"]}
    model = EnergyTransformerForMaskedImageModeling(EnergyTransformerConfig(**small_config.to_dict() | options)).eval()
    found, layer = memory_activations(model, images(2)), model.energy_transformer.layers[0]
    with torch.no_grad():
        states = model(images(2), bool_masked_pos=torch.zeros(2, 24).bool(), output_hidden_states=True).hidden_states
        gradient = layer.hopfield(layer.norm(states[-1]))
    torch.testing.assert_close(found @ layer.hopfield.W.T, -gradient[:, 1:], rtol=1e-4, atol=1e-6)


def test_a_memory_decoded(small_model):
    found = decoded_memories(small_model, PROCESSOR, [7, 3])
    memory = small_model.energy_transformer.layers[0].hopfield.W[:, 3]
    patch = small_model.decoder(small_model.energy_transformer.layers[0].norm(memory))
    torch.testing.assert_close(found[1], patch.view(3, 4, 4) * 0.5 + 0.5)
    assert len(decoded_memories(small_model, PROCESSOR)) == 48


def test_memories_are_switched_off_for_a_while(small_model):
    weight = hopfield_term(small_model).W
    before = weight.detach().clone()
    with scaled_memories(small_model, range(48)):
        record = record_descent(small_model, PROCESSOR, images(1))
        assert record.energy_of("hopfield").abs().max() == 0
    assert torch.equal(weight, before)
    with pytest.raises(RuntimeError), scaled_memories(small_model, [1], -1.0):
        torch.testing.assert_close(weight[:, 1], -before[:, 1])
        raise RuntimeError
    assert torch.equal(weight, before)
    with (
        pytest.raises(ValueError, match=r"memories must lie in \[0, 48\), got \[48\]"),
        scaled_memories(small_model, [48]),
    ):
        pass


def test_pictures_of_memories(small_model):
    values = memory_figure(small_model, PROCESSOR, images(), [5, 9]).values
    activations = memory_activations(small_model, images())[..., [5, 9]]
    np.testing.assert_array_equal(values["activations"][:, 0], activations.amax((0, 1)))
    effect = memory_effect_figure(small_model, PROCESSOR, images(2), some_mask(2), [5, 9])
    with scaled_memories(small_model, [5, 9]):
        expected = reconstruct(small_model, PROCESSOR, images(2), some_mask(2)).prediction
    np.testing.assert_array_equal(effect.values["without_memories"], expected)
    assert not np.allclose(effect.values["with_memories"], expected, atol=1e-5)


def test_the_film_of_a_descent(result, tmp_path):
    film = descent_animation(result, image=1)
    assert len(film.frames) == 4 and not np.array_equal(film.frames[0], film.frames[1])
    film.save(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames == 4 and image.size == film.frames.shape[2:0:-1] and image.info["loop"] == 0
    assert film._repr_html_().startswith('<img src="data:image/gif;base64,')
    with pytest.raises(UserError, match=r"must end in .gif or .mp4, got .*film.avi"):
        film.save(tmp_path / "film.avi")


def test_an_mp4_needs_ffmpeg(tmp_path, monkeypatch):
    film = Animation([np.full((31, 47, 3), value, np.uint8) for value in (0, 100, 200)])
    if shutil.which("ffmpeg"):
        film.save(tmp_path / "film.mp4")
        assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="an MP4 needs the program ffmpeg"):
        film.save(tmp_path / "other.mp4")
    assert not (tmp_path / "other.mp4").exists()


@pytest.mark.parametrize(("count", "number"), [(100, 8), (9, 8), (3, 8), (1, 1)])
def test_a_sample_has_one_of_each_part(count, number):
    found = even_sample(count, number, seed=3)
    assert found == even_sample(count, number, seed=3) == sorted(set(found)) and len(found) == min(count, number)
    parts = [index * len(found) // count for index in found]
    assert max(np.diff([-1, *parts])) <= 2 and max(found) < count
    assert count < 10 or found != even_sample(count, number, seed=4)


def test_the_command_draws_everything_of_files(small_model, small_config, tmp_path, capsys):
    for name in ("coffee.png", "chelsea.png"):
        Image.fromarray(photograph(name)).save(tmp_path / name)
    files = [str(tmp_path / name) for name in ("coffee.png", "chelsea.png")]
    classifier = EnergyTransformerForImageClassification(small_config)
    for model, expected in ((small_model, OF_ALL_MODELS | OF_MASKED_MODELS), (classifier, OF_ALL_MODELS)):
        folder, output = tmp_path / type(model).__name__, tmp_path / f"{type(model).__name__}-pictures"
        model.save_pretrained(folder)
        PROCESSOR.save_pretrained(folder)
        inspect_command([str(folder), *files, "--output_dir", str(output), "--patch", "3", "5", "--num_steps", "1"])
        assert {path.stem for path in output.glob("*.png")} == expected
        assert (output / "animation.gif").exists() == (model is small_model)
        for path in output.glob("*.png"):
            with Image.open(path) as image:
                image.load()
        assert str(output / "energy.png") in capsys.readouterr().out


def test_mistakes_of_the_command(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    for words, message in (
        (["--num_images", "0"], "num_images must be at least 1, got 0"),
        (["--patch", "4", "0"], r"patch must be a row below 4 and a column below 6, got \[4, 0\]"),
        (["--output_dir", str(tmp_path / "model" / "config.json")], "output_dir must be a folder"),
        (["--mask_ratio", "2"], "mask_ratio must lie between 0 and 1"),
        ([str(tmp_path / "nothing.png")], "cannot read the image"),
    ):
        with pytest.raises(UserError, match=message):
            inspect_command([str(tmp_path / "model"), *words])


def test_the_first_picture_of_the_readme_is_of_the_weights_that_are_shipped(tmp_path):
    script = Path(__file__).parents[1] / "docs" / "first_picture.py"
    stored = script.parent / "images" / "first_picture.png"
    runpy.run_path(str(script))["main"](tmp_path / "picture.png")
    drawn, shown = (
        np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (tmp_path / "picture.png", stored)
    )
    assert drawn.shape == shown.shape and np.abs(drawn - shown).mean() < 2
    assert stored.stat().st_size < 300_000
