"""What is built is whole, and what is installed from it works: a wheel, an sdist, a clone, and each extra.

An empty environment gets the wheel and what it needs from the package index, and then loses the wheel again. The others
see what is left there through a path file, and get what pip adds for them.
"""

import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from energy_transformer.data.demo import photograph

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ["-c", str(ROOT / "constraints.txt")]
pytestmark = pytest.mark.slow
USE_THE_MODEL = """
import energy_transformer, torch, sys
from transformers import AutoImageProcessor, AutoModelForMaskedImageModeling
from PIL import Image
folder = energy_transformer.demo_checkpoint()
model = AutoModelForMaskedImageModeling.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
pixels = processor(Image.open(sys.argv[1]), return_tensors="pt")["pixel_values"]
outputs = model(pixels, bool_masked_pos=torch.rand(1, 64) < 0.5, output_energies=True)
assert pixels.shape == outputs.reconstruction.shape == (1, 3, 32, 32) and outputs.energies.isfinite().all()
from energy_transformer.training.recipes import configuration_folder, find_launch_file, find_recipe
assert all(find_recipe(name, "masked_image_modeling").is_file() for name in ("cifar10", "demo"))
assert find_launch_file("cpu").is_file()
print(energy_transformer.__file__, configuration_folder(), sep=chr(10))
"""
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
# nothing answers there; `unshare` takes the network away altogether, where it may
OFFLINE = CLEAN | dict.fromkeys(("HF_ENDPOINT", "http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
ALONE = (
    ["unshare", "--net"] if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0 else []
)


def call(*words, environment=CLEAN, cwd=None, code=0):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=1200, env=environment, cwd=cwd)
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


def pip_install(executable, *words):
    return call(executable, "-m", "pip", "install", "--quiet", *CONSTRAINTS, *words)


def new_environment(folder, beneath=None):
    """The interpreter of a new environment, which sees the packages of the one `beneath`."""
    call(sys.executable, "-m", "venv", folder)
    if beneath is not None:
        (theirs,) = beneath.parents[1].glob("lib/python*/site-packages")
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "zz_beneath.pth").write_text(f"{theirs}\n")  # the last of the path files
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def base(built, tmp_path_factory):
    """What the base install of the wheel brings, without the wheel itself."""
    python = new_environment(tmp_path_factory.mktemp("base") / "env")
    pip_install(python, built[1])
    call(python, "-m", "pip", "uninstall", "--quiet", "--yes", "energy-transformer")
    return python


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(photograph("astronaut.png")[64:192, 160:352]).save(path, quality=95)
    return path


def test_sdist_and_wheel_are_whole(built):
    sdist, wheel = built
    assert "PASSED" in call(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel).stdout
    tracked = set(call("git", "ls-files", "energy_transformer", "configuration", cwd=ROOT).stdout.split())
    tracked |= {"energy_transformer_command.py"}
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert in_wheel == {re.sub("^configuration/", "energy_transformer/configuration/", name) for name in tracked}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert in_sdist >= tracked | {"pyproject.toml", "README.md", "LICENSE", "scripts/reconstruct.py"}
    assert not any(name.startswith(("tests/", "benchmarks/", ".ci/")) for name in in_sdist)


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_each_install_finds_model_recipes_and_command(kind, built, base, photo, tmp_path):
    sdist, wheel = built
    source = {"wheel": [wheel], "sdist": [sdist], "editable": ["--editable", ROOT]}[kind]
    python = new_environment(tmp_path / "env", base)
    pip_install(python, *source)
    module, configuration = call(python, "-c", USE_THE_MODEL, photo, cwd=tmp_path).stdout.split()
    place = ROOT if kind == "editable" else tmp_path / "env"
    assert Path(module).is_relative_to(place) and Path(configuration).is_relative_to(place)
    command = python.with_name("energy-transformer")
    assert f"in {Path(module).parent}\n" in call(command, "env", cwd=tmp_path).stdout
    launch_file = Path(call(command, "env", "--launch_file", "cpu", cwd=tmp_path).stdout.strip())
    assert launch_file.is_relative_to(place) and launch_file.read_text().startswith("# One process on the CPU.")


def test_the_base_install_says_how_to_train_and_that_works(built, base, tmp_path):
    """The hint is run as it is written; then the launcher trains from the installed wheel."""
    python = new_environment(tmp_path / "env", base)
    pip_install(python, built[1])
    extras = ("accelerate", "datasets", "msgpack", "skimage")
    assert (
        call(python, "-c", f"import importlib.util as u; print([m for m in {extras} if u.find_spec(m)])").stdout
        == "[]\n"
    )
    environment = CLEAN | {"PATH": f"{python.parent}:{CLEAN['PATH']}", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = ["train", "masked-image-modeling", "--config", "demo", "--cpu", "--max_train_steps", "3"]
    command = python.with_name("energy-transformer")
    refused = call(command, *words, environment=environment, cwd=tmp_path, code=2)
    hint = re.fullmatch(r"error: \w+ is missing: (pip install .*)\n", refused.stderr)[1]
    call("sh", "-c", f"{hint} {shlex.join(CONSTRAINTS)}", environment=environment, cwd=tmp_path)
    trained = call(
        "accelerate", "launch", "--cpu", "-m", "energy_transformer", *words, environment=environment, cwd=tmp_path
    )
    assert "training: 3 steps" in trained.stdout and (tmp_path / "outputs" / "demo" / "model.safetensors").is_file()


EXTRAS = {
    "convert": ["convert", ROOT / "tests" / "reference" / "jax_flax_masked_image.msgpack", "converted"],
    "train": ["train", "masked-image-modeling", "--config=demo", "--cpu", "--max_train_steps=2", "--output_dir=run"],
    "mnist,train": ["train", "image-classification", "--dataset_name=mnist5k", "--cpu", "--max_train_steps=2",
                    "--output_dir=run"],
}  # fmt: skip
BUILD_APP = """
from energy_transformer import demo_checkpoint
from energy_transformer.app.interface import build
from energy_transformer.app.session import Explorer

explorer = Explorer.of(str(demo_checkpoint()))
build(explorer)
explorer.memories()
"""


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_brings_what_its_command_needs(extra, built, base, tmp_path):
    python = new_environment(tmp_path / "env", base)
    pip_install(python, f"{built[1]}[{extra}]")
    environment = CLEAN | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    call(python.with_name("energy-transformer"), *EXTRAS[extra], environment=environment, cwd=tmp_path)
    (model,) = tmp_path.glob("*/model.safetensors")
    assert (model.parent / "preprocessor_config.json").is_file()


def test_the_app_has_what_it_needs(built, base, tmp_path):
    python = new_environment(tmp_path / "env", base)
    pip_install(python, f"{built[1]}[app]")
    call(python, "-c", BUILD_APP, environment=CLEAN | {"HF_HOME": str(tmp_path / "home")}, cwd=tmp_path)


def test_the_first_minute_without_training_and_network(built, base, photo, tmp_path):
    """A photograph and a mask in, the filled photograph out, from the wheel alone."""
    python = new_environment(tmp_path / "env", base)
    pip_install(python, built[1])
    original = np.asarray(Image.open(photo), dtype=np.float64) / 255
    hidden = np.zeros(original.shape[:2], dtype=bool)
    for row, column in ((16, 128), (48, 32), (64, 80), (96, 144)):
        hidden[row : row + 16, column : column + 16] = True
    Image.fromarray(hidden.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    words = ["reconstruct", photo, "--mask", "mask.png", "--output", "filled.png"]
    call(*ALONE, python.with_name("energy-transformer"), *words, environment=OFFLINE, cwd=tmp_path)
    filled = np.asarray(Image.open(tmp_path / "filled.png").convert("RGB"), dtype=np.float64) / 255
    assert filled.shape == original.shape and (filled[~hidden] == original[~hidden]).all()
    error = ((filled - original)[hidden] ** 2).mean()
    mean_color = ((original[~hidden].mean(0) - original[hidden]) ** 2).mean()
    assert error < mean_color
