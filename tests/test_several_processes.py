"""What one process of two finds differently is an error that names it, in place of a hang or a silent mixture."""

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from training_runs import SCRIPT, TINY, finish, launcher

from energy_transformer.data.demo import photograph

WRAPPER = Path(__file__).with_name("on_another_machine.py")
WORDS = ["--per_device_train_batch_size=4", "--checkpointing_steps=4"]


@pytest.fixture(scope="module", autouse=True)
def needs_mounts():
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("the second process cannot have mounts of its own here")


def launch(mounts, folder, *words):
    command = launcher("multi_cpu", folder, *words)
    place = command.index(SCRIPT)
    mounted = ",".join(f"{target}={source}" for target, source in mounts.items())
    return finish([*command[:place], WRAPPER, mounted, *command[place:]])


def errors(done):
    assert done.returncode != 0
    return [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def empty(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("exists", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_folder_of_one_machine_alone_is_refused_at_the_start(tmp_path, exists):
    """Where the folder of the run is there, or only the one that it is to be made in."""
    place = empty(tmp_path / "place")
    folder = empty(place / "run") if exists else place / "run"
    done = launch({folder if exists else place: empty(tmp_path / "other")}, folder, *WORDS)
    assert len(errors(done)) == 1 and "is not one folder for all processes: process 1 on " in errors(done)[0]
    assert {path.name for path in folder.glob("*")} <= {".lock"} and not any((tmp_path / "other").rglob("*"))


def test_the_main_process_chooses_the_state_and_the_others_see_it(tmp_path):
    """A view that lacks the newest state resumed with other weights, and mixed the gradients of both."""
    folder = tmp_path / "run"
    assert launch({tmp_path: tmp_path}, folder, *WORDS, "--max_train_steps=8").returncode == 0
    shutil.copytree(folder, tmp_path / "before")
    done = launch(
        {folder / "checkpoint-8": empty(tmp_path / "empty")}, folder, *WORDS, "--resume_from_checkpoint=latest"
    )
    assert len(errors(done)) == 1 and "process 1 on " in errors(done)[0]
    assert f"has found other bytes of the state {folder / 'checkpoint-8'} than process 0 on " in errors(done)[0]
    assert "none that can be read against checksum " in errors(done)[0]
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in (tmp_path / "before").iterdir())


def images(folder, count):
    folder.mkdir()
    pixels = photograph("coffee.png")
    for number in range(count):
        Image.fromarray(pixels[number : number + 40, :40]).save(folder / f"{number}.png")
    return folder


def test_other_images_on_one_machine_are_an_error_that_says_so(tmp_path, monkeypatch):
    target = images(tmp_path / "images", 24)
    cache, other_cache = empty(tmp_path / "cache"), empty(tmp_path / "other_cache")
    mounts = {target: images(tmp_path / "other", 25), cache: other_cache}
    words = [word for word in WORDS if "checkpoint" not in word]
    command = ["env", f"HF_DATASETS_CACHE={cache}"]
    whole = launcher("multi_cpu", tmp_path / "run", *words, f"--train_dir={target}")
    place = whole.index(SCRIPT)
    mounted = ",".join(f"{target}={source}" for target, source in mounts.items())
    done = finish([*command, *whole[:place], WRAPPER, mounted, *whole[place:]])
    assert len(errors(done)) == 1, done.stderr
    assert "process 1 on " in errors(done)[0] and "has found other training images than process 0" in errors(done)[0]
    assert "21 images (" in errors(done)[0] and "20 images (" in errors(done)[0]


def test_other_options_of_one_process_are_an_error_that_names_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "words = [*sys.argv[1:], *(['--max_train_samples=32'] if os.environ['LOCAL_RANK'] == '1' else [])]\n"
        f"os.execv(sys.executable, [sys.executable, {str(SCRIPT)!r}, *words])\n"
    )
    command = launcher("multi_cpu", tmp_path / "run", *WORDS)
    done = finish([script if word == SCRIPT else word for word in command])
    assert len(errors(done)) == 1, done.stderr
    assert "has found other value of max_train_samples than process 0 on " in errors(done)[0]
    assert errors(done)[0].endswith("32 against 64") and TINY[0] == "--max_train_samples=64"


def test_each_launch_on_one_machine_has_a_port_of_its_own(tmp_path):
    """Two runs that share a port may join one another's group, and then neither ends."""
    (tmp_path / "port.py").write_text("import os; print(os.environ['MASTER_PORT'])")
    ports = set()
    for config in ("multi_cpu", "fsdp"):
        command = launcher(config, tmp_path, script=tmp_path / "port.py")
        done = finish(command)
        assert done.returncode == 0, done.stderr
        ports |= {*done.stdout.split()}
    assert len(ports) == 2 and "29500" not in ports


def test_no_wrapped_model_outlives_its_group_of_processes(tmp_path):
    """It would hold the group to its own end, at which torch 2.13 may wait forever for a thread of gloo."""
    counted = tmp_path / "counted.py"
    counted.write_text("""
import gc
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from energy_transformer.commands.train import main
from energy_transformer.utils.command_line import run_script

def end_training(accelerator, end=Accelerator.end_training):
    print("wrapped:", sum(isinstance(found, DistributedDataParallel) for found in gc.get_objects()))
    end(accelerator)

Accelerator.end_training = end_training
run_script(lambda words: main(["masked-image-modeling", *words]))
""")
    done = finish(launcher("multi_cpu", tmp_path / "run", "--max_train_steps=2", script=counted))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrapped: 0") == 2
