"""Whatever is wrong with a foreign checkpoint is refused with the reason, on one line, and nothing is written."""

import contextlib
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from foreign_checkpoints import flax_bytes, lemon_state, lumen_state
from reference_numbers import FOLDER, load, under

from energy_transformer import EnergyTransformer
from energy_transformer.conversion import convert_checkpoint
from energy_transformer.conversion.readers import read_file
from energy_transformer.utils.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "convert_checkpoint.py"


def refused(source, *words, **options):
    """The one-line message with which the conversion fails; every one of `words` must be in it."""
    with pytest.raises(UserError) as caught:
        convert_checkpoint(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def write_npz(path, tensors):
    with path.open("wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})


def write_flax(path, tensors):
    tree: dict = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = tensor.numpy()
    path.write_bytes(flax_bytes({"params": tree}))


def flax_parameters(name):
    return {key.replace("/", "."): value for key, value in under(load(name), "param/", "param.").items()}


def lumen_image_parameters():
    """The layout alone: the numbers are of no interest here."""
    block = EnergyTransformer(24, 40, 3, context=16).state_dict()
    sizes = {"patch_embedder": (48, 24), "patch_deembedder": (24, 48)}
    state = {f"model.{name}": tensor for name, tensor in block.items()} | {"mask_token": torch.zeros(24)}
    for name, (inner, outer) in sizes.items():
        parts = torch.nn.Sequential(
            torch.nn.Linear(inner, 24), torch.nn.LayerNorm(24), torch.nn.ReLU(), torch.nn.Linear(24, outer)
        )
        state |= {f"{name}.{part}": tensor for part, tensor in parts.state_dict().items()}
    return state


# origin: how to write it, its tensors, and the axes that no other tensor fixes
ORIGINS = {
    "plaindict": (write_npz, lambda: load("jax_plaindict_ckpt.npz"), {("Xi", 1)}),
    "flax": (
        write_flax,
        lambda: flax_parameters("jax_flax_masked_image.npz"),
        {("backbone.block.chn.kernel", 1)},
    ),
    "flax classifier": (
        write_flax,
        lambda: flax_parameters("jax_flax_classification_mlp.npz"),
        {("backbone.block.chn.kernel", 1), ("backbone.encoder.kernel", 0)},
    ),
    "LumenPallidium": (
        lambda path, tensors: torch.save(tensors, path),
        lambda: lumen_state(load("lumen_energy_transformer_relu.npz")),
        {("hopfield.W", 1), ("pos_embedding", 1)},
    ),
    "seed image model": (
        lambda path, tensors: torch.save(tensors, path),
        lumen_image_parameters,
        {("model.hopfield.W", 1)},
    ),
    "lemon": (
        lambda path, tensors: torch.save({"model": tensors}, path),
        lambda: lemon_state(load("more/lemon_2block_bias.npz")),
        set(),
    ),
}


@pytest.fixture(params=ORIGINS)
def origin(request):
    write, tensors, free = ORIGINS[request.param]
    return write, tensors(), free


def test_every_key_is_needed(origin, tmp_path):
    write, tensors, _ = origin
    source = tmp_path / "checkpoint"
    for name in tensors:
        if name == "pos_embedding":  # a block without positions is one of its own
            continue
        write(source, {other: tensor for other, tensor in tensors.items() if other != name})
        assert refused(source, "missing key").endswith(name.removeprefix("model.")), name


def test_every_key_is_used(origin, tmp_path):
    write, tensors, _ = origin
    write(tmp_path / "checkpoint", {**tensors, "extra": torch.zeros(2)})
    refused(tmp_path / "checkpoint", "unused key", "extra")


def test_every_size_is_checked(origin, tmp_path):
    write, tensors, free = origin
    source = tmp_path / "checkpoint"
    for name, tensor in tensors.items():
        for axis in range(tensor.ndim):
            write(source, {**tensors, name: torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)})
            if (name, axis) in free:
                convert_checkpoint(source)
            else:
                refused(source, "")
        write(source, {**tensors, name: tensor[None]})
        refused(source, "has shape")


def test_contradicting_shapes_are_named(tmp_path):
    tensors = load("jax_plaindict_ckpt.npz")
    write_npz(tmp_path / "checkpoint", {**tensors, "Benc": torch.zeros(25)})
    refused(tmp_path / "checkpoint", "Benc has shape (25,), expected (D) with D = 24 as in Wq")


def test_integers_are_no_weights(tmp_path):
    tensors = load("jax_plaindict_ckpt.npz")
    write_npz(tmp_path / "checkpoint", {**tensors, "Xi": tensors["Xi"].long()})
    refused(tmp_path / "checkpoint", "Xi holds torch.int64")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_no_weights(origin, value, tmp_path):
    write, tensors, _ = origin
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.ndim == 3)
    changed = tensor.clone()
    changed[0, 0, 0] = value
    write(tmp_path / "checkpoint", {**tensors, name: changed})
    refused(tmp_path / "checkpoint", f"{name.removeprefix('model.')} holds NaN or infinite numbers")


def test_numbers_that_the_dtype_cannot_hold(tmp_path):
    tensors = load("jax_plaindict_ckpt.npz")
    write_npz(tmp_path / "checkpoint", {**tensors, "Xi": tensors["Xi"] * 1e6})
    refused(tmp_path / "checkpoint", "dtype=torch.float16 is too narrow", "hopfield.W", dtype="float16")
    convert_checkpoint(tmp_path / "checkpoint", dtype="bfloat16")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (torch.Tensor.to_sparse, "hopfield.W is a sparse_coo tensor"),
        (lambda tensor: tensor.to("meta"), "hopfield.W is a meta tensor"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "hopfield.W holds torch.float8_e4m3fn"),
        (lambda tensor: tensor + 0j, "hopfield.W holds torch.complex"),
    ],
)
def test_tensors_of_another_kind(change, reason, tmp_path):
    state = lumen_state(load("lumen_energy_transformer_relu.npz"))
    torch.save({**state, "hopfield.W": change(state["hopfield.W"])}, tmp_path / "seed.pth")
    refused(tmp_path / "seed.pth", reason)


def test_keys_that_become_the_same(tmp_path):
    state = lumen_state(load("lumen_energy_transformer_relu.npz"))
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({**wrapped, "hopfield.W": 2 * state["hopfield.W"]}, tmp_path / "seed.pth")
    refused(tmp_path / "seed.pth", "two values for the key hopfield.W")
    torch.save({"a": wrapped, "a.module.mha.Wq": state["mha.Wq"]}, tmp_path / "nested.pth")
    refused(tmp_path / "nested.pth", "two values for the key a.module.mha.Wq")
    lemon = lemon_state(load("more/lemon_1block.npz"))
    wrapped = {f"module.{name}": tensor for name, tensor in lemon.items()}
    torch.save({**wrapped, "cls": 2 * lemon["cls"]}, tmp_path / "lemon.pth")
    refused(tmp_path / "lemon.pth", "two values for the key cls")
    flax = flax_parameters("jax_flax_masked_image.npz")
    write_flax(tmp_path / "flax", flax)
    tree = msgpack.unpackb((tmp_path / "flax").read_bytes())
    name = "backbone.cls_token"
    (tmp_path / "flax").write_bytes(msgpack.packb({**tree, name: tree["params"]["backbone"]["cls_token"]}))
    refused(tmp_path / "flax", f"two values for the key {name}")


def test_names_that_a_file_has_twice(tmp_path):
    source = tmp_path / "checkpoint"
    source.write_bytes((FOLDER / "jax_plaindict_ckpt.npz").read_bytes())
    with zipfile.ZipFile(source, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("Xi.npy", archive.read("Xi.npy"))
    refused(source, "two values for the key Xi")
    entry = msgpack.packb("params") + flax_bytes({"backbone": {"Wq": np.zeros(3)}})
    source.write_bytes(b"\x82" + 2 * entry)
    refused(source, "two values for the key params")


@pytest.fixture
def whole_files(tmp_path):
    """One file of each format."""
    state = lemon_state(load("lemon_image_et_1_block.npz"))
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    references = [FOLDER / "jax_plaindict_ckpt.npz", FOLDER / "jax_flax_masked_image.msgpack"]
    return [tmp_path / "zip.pth", tmp_path / "legacy.pth", *references]


def test_truncated_files(whole_files, tmp_path):
    for path in whole_files:
        convert_checkpoint(path)
        data = path.read_bytes()
        for length in [*range(2, 40), *range(40, len(data), len(data) // 40), len(data) - 1]:
            (tmp_path / "cut").write_bytes(data[:length])
            refused(tmp_path / "cut", "damaged or truncated")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes(whole_files, tmp_path):
    """A changed byte may change a weight where the format has no checksum; it never causes another error."""
    generator = random.Random(0)
    for path in whole_files:
        data = path.read_bytes()
        places = [*range(100), *generator.sample(range(len(data)), 50), *range(len(data) - 100, len(data))]
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 1 << generator.randrange(8)
            (tmp_path / "damaged").write_bytes(damaged)
            with contextlib.suppress(UserError):
                read_file(tmp_path / "damaged")


def test_checksums_and_unknown_extensions(tmp_path):
    data = bytearray((FOLDER / "jax_plaindict_ckpt.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "damaged").write_bytes(data)
    refused(tmp_path / "damaged", "damaged or truncated", "CRC")
    (tmp_path / "damaged").write_bytes(msgpack.packb({"params": {"backbone": msgpack.ExtType(9, b"")}}))
    refused(tmp_path / "damaged", "damaged or truncated", "unknown extension type 9")


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_more_than_tensors_are_not_run(zipped, tmp_path):
    state = lumen_state(load("lumen_energy_transformer_relu.npz"))
    content = {"model": state, "extra": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "seed.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "seed.pth", "holds more than tensors", "mkdir")
    block = EnergyTransformer(24, 40, 3)
    torch.save(block, tmp_path / "module.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "module.pth", "holds more than tensors", "EnergyTransformer", "state_dict()")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(content["extra"], protocol=2))
    refused(tmp_path / "plain.pkl", "")
    with (tmp_path / "objects.npz").open("wb") as file:
        np.savez(file, Wq=np.array([content["extra"]], dtype=object))
    refused(tmp_path / "objects.npz", "holds Python objects")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unknown format"),
        (b"just some text", "unknown format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "unknown format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_files_that_are_no_checkpoints(content, reason, tmp_path):
    (tmp_path / "file").write_bytes(content)
    refused(tmp_path / "file", reason)


def test_files_of_unknown_origin(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("text.txt", "text")
    refused(tmp_path / "other.zip", "unknown format")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "nowhere", "missing")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    refused(tmp_path / "linear.pth", "unknown origin", "weight, bias")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "expected a dict")
    state = lumen_state(load("lumen_energy_transformer_relu.npz"))
    torch.save({"epoch": 2, "optimizer": {"module": state}}, tmp_path / "training.pth")
    refused(tmp_path / "training.pth", "unknown origin", "no parameters: epoch, optimizer")
    state = lemon_state(load("more/lemon_1block.npz"))
    torch.save({"opt": state}, tmp_path / "training.pth")
    refused(tmp_path / "training.pth", "unknown origin", "no parameters: opt")
    torch.save({"comment": "mine"}, tmp_path / "comment.pth")
    refused(tmp_path / "comment.pth", "unknown origin", "comment")
    refused(FOLDER / "jax_equinox_block.npz", "unknown origin")
    (tmp_path / "flax").write_bytes(flax_bytes({"params": {"Dense_0": {"bias": np.zeros(3)}}}))
    refused(tmp_path / "flax", "unknown origin")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "open", denied)
    refused(tmp_path / "file", "cannot be read: Permission denied")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(Path, "iterdir", denied)
    refused(tmp_path / "file", "output_dir", "cannot be read", output_dir=tmp_path / "folder")


def test_values_that_are_no_tensors(tmp_path):
    state = lumen_state(load("lumen_energy_transformer_relu.npz"))
    torch.save({**state, "comment": "mine"}, tmp_path / "seed.pth")
    refused(tmp_path / "seed.pth", "unused key: comment (str)")


def with_patches(tmp_path, patches, elements):
    tensors = load("jax_plaindict_ckpt.npz")
    tensors |= {"POS_embed": torch.zeros(1 + patches, 24), "Wenc": torch.zeros(elements, 24)}
    tensors |= {"Wdec": torch.zeros(24, elements), "Bdec": torch.zeros(elements)}
    write_npz(tmp_path / "checkpoint", tensors)
    return tmp_path / "checkpoint"


def geometry(model):
    return model.config.image_height_width, model.config.patch_size, model.config.num_channels


def test_geometry_is_inferred_or_asked_for(tmp_path):
    assert geometry(convert_checkpoint(with_patches(tmp_path, 9, 75))) == ((15, 15), 5, 3)
    assert geometry(convert_checkpoint(with_patches(tmp_path, 9, 25))) == ((15, 15), 5, 1)
    source = with_patches(tmp_path, 12, 75)
    refused(source, "12 patches", "pass image_size")
    refused(source, "image_size=21", "contradicts", "12 square patches of 75 values", image_size=21)
    assert geometry(convert_checkpoint(source, image_size=(15, 20))) == ((15, 20), 5, 3)
    source = with_patches(tmp_path, 4, 32)
    refused(source, "32 values", "pass patch_size or num_channels")
    assert geometry(convert_checkpoint(source, num_channels=2)) == ((8, 8), 4, 2)
    assert geometry(convert_checkpoint(source, patch_size=2)) == ((4, 4), 2, 8)
    assert geometry(convert_checkpoint(source, image_size=(4, 16))) == ((4, 16), 4, 2)
    refused(source, "patch_size=2, num_channels=2 contradicts", patch_size=2, num_channels=2)
    refused(with_patches(tmp_path, 0, 75), "no patch")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_attention_heads": 4}, ["num_attention_heads=4 contradicts", "3 heads"]),
        ({"patch_size": 8}, ["patch_size=8 contradicts"]),
        ({"image_size": 0}, ["image_size must be one whole number or height and width greater than 0, got 0"]),
        ({"image_size": (4, 4, 4)}, ["image_size must be", "got (4, 4, 4)"]),
        ({"image_size": "16"}, ["image_size must be", "got '16'"]),
        ({"image_size": 16.0}, ["image_size must be one whole number", "got 16.0"]),
        ({"image_size": (16, 16.0)}, ["image_size must be one whole number", "got (16, 16.0)"]),
        ({"num_channels": True}, ["num_channels must be a whole number greater than 0, got True"]),
        ({"num_steps": -1}, ["num_steps must be a whole number greater than 0, got -1"]),
        ({"num_steps": 2.5}, ["num_steps must be a whole number greater than 0, got 2.5"]),
        ({"step_size": float("nan")}, ["step_size must be a finite number greater than 0, got nan"]),
        ({"attention_beta": float("inf")}, ["attention_beta must be a finite number greater than 0, got inf"]),
        ({"steps": 3}, ["unknown option steps", "num_steps"]),
        ({"dtype": "int8"}, ["dtype must be one of", "got int8"]),
        ({"hopfield_activation": "tanh"}, ["hopfield_activation must be", "'tanh'"]),
        ({"hopfield_activation": "softmax"}, ["hopfield_activation does not apply"]),
    ],
)
def test_options_that_do_not_fit(options, words):
    refused(FOLDER / "jax_plaindict_ckpt.npz", *words, **options)


def test_options_of_lumen(tmp_path):
    block = EnergyTransformer(24, 40, 3, beta=torch.ones(1), hopfield_type="softmax")
    torch.save(block.state_dict(), tmp_path / "seed.pth")
    refused(tmp_path / "seed.pth", "pass hopfield_activation")
    for activation in ("relu", "softmax"):
        model = convert_checkpoint(tmp_path / "seed.pth", hopfield_activation=activation)
        assert type(model.hopfield).__name__ == {"relu": "BaseModernHopfield"}.get(activation, "SoftmaxModernHopfield")
    refused(tmp_path / "seed.pth", "image_size does not apply", hopfield_activation="relu", image_size=16)
    refused(tmp_path / "seed.pth", "attention_beta does not apply", attention_beta=0.5)
    torch.save(EnergyTransformer(24, 40, 3).state_dict(), tmp_path / "seed.pth")
    refused(tmp_path / "seed.pth", "hopfield_activation='softmax' contradicts", hopfield_activation="softmax")


def test_output_folder(tmp_path):
    source = FOLDER / "jax_plaindict_ckpt.npz"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused(source, "not an empty folder", output_dir=tmp_path / "full")
    refused(source, "not an empty folder", output_dir=tmp_path / "full" / "file")
    refused(source, "cannot be written", output_dir=tmp_path / "full" / "file" / "below")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]
    (tmp_path / "empty").mkdir()
    convert_checkpoint(source, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_a_crash_leaves_nothing(tmp_path, monkeypatch):
    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.ModelCard.save", crash)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(FOLDER / "jax_plaindict_ckpt.npz", tmp_path / "converted")
    assert not list(tmp_path.iterdir())


def test_msgpack_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    refused(FOLDER / "jax_flax_masked_image.msgpack", "flax checkpoints need msgpack: pip install")


def test_script_ends_with_one_line_and_code_2(tmp_path):
    """In a process of its own, as a user runs it."""
    (tmp_path / "file").write_text("no checkpoint")
    for words, reason in [
        ([str(tmp_path / "file"), str(tmp_path / "out")], "unknown format"),
        ([str(tmp_path / "file")], "OUTPUT_DIR"),
        ([str(tmp_path / "file"), str(tmp_path / "out"), "--image_size", "4", "4", "4"], "image_size must be"),
    ]:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
        result = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, env=environment)
        assert result.returncode == 2
        last = result.stderr.splitlines()[-1]  # torchao, where it is installed, warns before it
        assert last.startswith("error: ") and reason in last and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
