"""Training for real: processes under `accelerate launch`, the folder that a run leaves, repetition and resumption."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForMaskedImageModeling, ViTMAEConfig

from energy_transformer.data import load_image_datasets
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import load_image_processor
from energy_transformer.training.loaders import build_eval_loader, image_tensors
from energy_transformer.training.masked_image_modeling import MaskedImageModelingTraining as Training
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.masked_image_modeling_evaluation import evaluate
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train_masked_image_modeling.py"
DEMO = ROOT / "configuration" / "training" / "demo.yaml"
SMALL = [
    "--max_train_samples=64", "--max_eval_samples=40", "--per_device_train_batch_size=16",
    "--per_device_eval_batch_size=16", "--max_train_steps=6", "--num_visual_samples=3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(output_dir, *words):
    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse_arguments([*SMALL, f"--output_dir={output_dir}", *words], DEMO, MaskedImageModelingArguments)
    return Training(args).run()


def launch(*words):
    command = [Path(sys.executable).with_name("accelerate"), "launch", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one process as a user starts it, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "output"
    done = launch(
        "--config_file", "configuration/accelerate/cpu.yaml", SCRIPT, *SMALL, "--eval_steps=3", f"--output_dir={folder}"
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_says_where_everything_is(finished):
    folder, done = finished
    assert f"model:    {folder}\n" in done.stdout
    assert f"pictures: {folder}/samples\n" in done.stdout
    for name in ("model ", "mean color", "neighbor average", "model / mean color"):
        assert name in done.stdout
    assert "step 3: held-out error" in done.stdout
    assert "loss " in done.stdout and " images/s" in done.stdout


def test_leaves_a_complete_folder(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "preprocessor_config.json", "all_results.json", "samples"}
    assert [name for name in names if name.startswith(".")] == [".lock"]
    assert {path.name for path in (folder / "samples").iterdir()} == {
        "reconstructions.png", "descent.png", "energy.png", "token_energies.png",
    }  # fmt: skip
    for path in (folder / "samples").iterdir():
        picture = Image.open(path)
        picture.load()
        assert min(picture.size) > 300
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_samples"] == 40 and results["train_steps"] == 6
    assert results["arguments"]["max_train_samples"] == 64
    assert results["train_samples_per_second"] > 0


def test_the_printed_error_is_that_of_the_saved_model(finished):
    folder, _ = finished
    model = AutoModelForMaskedImageModeling.from_pretrained(folder)
    processor = load_image_processor(folder)
    args = parse_arguments(SMALL, DEMO, MaskedImageModelingArguments)
    splits, column = load_image_datasets(max_train_samples=64, max_eval_samples=40, seed=args.seed)
    _, images = image_tensors(splits, column, None, processor, args)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(build_eval_loader(images, args))
    again = evaluate(accelerator, model, loader, processor, 64, args.seed)
    results = json.loads((folder / "all_results.json").read_text())
    for name, value in again.items():
        assert results[name] == pytest.approx(value, rel=1e-5), name


def test_same_seed_same_numbers_to_the_last_digit(tmp_path, monkeypatch):
    """The first run decodes the images, the others find them in the cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    first, second = train(tmp_path / "a"), train(tmp_path / "b")
    timed = {"train_seconds", "train_samples_per_second", "train_data_wait_share"}
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    other = train(tmp_path / "c", "--seed=2")
    assert other["train_loss"] != first["train_loss"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path, accumulation):
    """Saved in the middle of the second epoch, resumed over the start of the third."""
    steps = f"--max_train_steps={10 // accumulation}"
    options = [steps, "--checkpointing_steps=3", f"--gradient_accumulation_steps={accumulation}"]
    whole = train(tmp_path / "whole", *options)
    resumed = train(tmp_path / "resumed", *options, f"--resume_from_checkpoint={tmp_path / 'whole' / 'checkpoint-3'}")
    assert resumed["train_loss"] == whole["train_loss"]
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed")


def test_saved_states_are_limited_and_the_latest_is_taken(tmp_path):
    train(tmp_path, "--checkpointing_steps=2", "--checkpoints_total_limit=2")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    results = train(tmp_path, "--resume_from_checkpoint=latest", "--max_train_steps=7")
    assert results["train_steps"] == 7
    with pytest.raises(UserError, match="7 steps are done already, and the run is to have 6"):
        train(tmp_path, "--resume_from_checkpoint=latest", "--max_train_steps=6")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed=2"], r"was saved with other options: seed was 1, now 2 \(start a new run for another seed\)"),
        (["--per_device_train_batch_size=8"], "was saved with images_per_step=16, got 8"),
        (["--config_overrides=hidden_size=32"], "was saved with other options: hidden_size was 64, now 32"),
        (["--config_overrides=hidden_size=32", "--override_saved_options"], "checkpoint-2 is of another model"),
    ],
)
def test_a_state_of_another_run_is_refused(tmp_path, words, message):
    train(tmp_path, "--checkpointing_steps=2", "--max_train_steps=2")
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path, "--resume_from_checkpoint=latest", *words)
    assert "\n" not in str(error.value)


def test_a_damaged_state_is_refused(tmp_path):
    train(tmp_path, "--checkpointing_steps=2", "--max_train_steps=2")
    damaged = tmp_path / "checkpoint-2" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"every saved state in .* is damaged: checkpoint-2"):
        train(tmp_path, "--resume_from_checkpoint=latest")


def test_training_lowers_the_error_and_moves_every_weight(tmp_path):
    first = train(tmp_path / "first", "--max_train_steps=1")
    last = train(tmp_path / "last", "--max_train_steps=40", "--learning_rate=3e-3")
    assert last["eval_masked_mse"] < 0.7 * first["eval_masked_mse"]
    before, after = weights(tmp_path / "first"), weights(tmp_path / "last")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_two_processes_train_the_same_model_quality(tmp_path):
    """Two gloo processes of half the batch: the same evaluation, and an error near that of one process."""
    done = launch(
        "--config_file", "configuration/accelerate/multi_cpu.yaml", SCRIPT, "--cpu", *SMALL,
        "--per_device_train_batch_size=8", "--max_train_steps=40", f"--output_dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model:    ") == 1, "one process prints"
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    one = train(tmp_path / "one", "--max_train_steps=40")
    assert two["num_processes"] == 2 and two["eval_samples"] == 40
    assert two["eval_mean_color_mse"] == pytest.approx(one["eval_mean_color_mse"], rel=1e-5)
    assert two["eval_neighbor_average_mse"] == pytest.approx(one["eval_neighbor_average_mse"], rel=1e-5)
    assert two["eval_masked_mse"] == pytest.approx(one["eval_masked_mse"], rel=0.15)


def test_the_launcher_that_starts_one_process_of_two_is_not_silent(tmp_path):
    done = launch(
        "--num_processes=2", "--cpu", SCRIPT, *SMALL, "--max_train_steps=1", f"--output_dir={tmp_path / 'one'}"
    )
    assert done.returncode == 0, done.stderr
    assert "starts one process" in done.stderr and "configuration/accelerate/multi_cpu.yaml" in done.stderr


def test_goes_on_from_a_model_at_another_size(finished, tmp_path):
    results = train(tmp_path, f"--model_name_or_path={finished[0]}", "--max_train_steps=1", "--mask_patch_size=8")
    assert results["train_steps"] == 1


def test_another_run_is_not_overwritten_unless_asked(tmp_path):
    train(tmp_path, "--max_train_steps=1")
    (tmp_path / "notes.py").write_text("mine")
    saved = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds files of another run"):
        train(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == saved
    with pytest.raises(UserError, match="nowhere"):
        train(tmp_path, "--overwrite_output_dir", "--train_dir=nowhere")
    assert (tmp_path / "model.safetensors").read_bytes() == saved, "a mistake costs nothing"
    train(tmp_path, "--overwrite_output_dir", f"--model_name_or_path={tmp_path}", "--max_train_steps=2")
    assert (tmp_path / "model.safetensors").read_bytes() != saved
    assert (tmp_path / "notes.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask_patch_size=6"], "mask_patch_size must be a multiple of the patch size"),
        (
            ["--per_device_train_batch_size=65"],
            "per_device_train_batch_size is 65, which makes 65 .* only 64 training",
        ),
        (["--resume_from_checkpoint=nowhere"], "nowhere is not a saved state"),
        (["--train_dir=nowhere"], "train_dir: there is no file or folder nowhere"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, words, message):
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path / "output", *words)
    assert "\n" not in str(error.value)


def test_a_held_out_error_that_is_not_finite_is_reported(tmp_path):
    with pytest.raises(UserError, match="the held-out error is not finite at step 1"):
        train(tmp_path, "--learning_rate=1e30", "--max_train_steps=1", "--warmup_ratio=0")


def test_half_precision_that_the_cpu_does_not_train_is_refused(tmp_path):
    with pytest.raises(UserError, match="mixed_precision fp16 needs a GPU"):
        train(tmp_path, "--mixed_precision=fp16")


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    ViTMAEConfig(image_size=32, patch_size=4).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="is no Energy Transformer: vit_mae"):
        train(tmp_path / "output", f"--model_name_or_path={tmp_path / 'vit'}")


def test_the_launcher_adds_nothing_to_a_mistake(tmp_path):
    done = launch("--quiet", "--cpu", "--num_processes=1", SCRIPT, "--mask_ratio=2", f"--output_dir={tmp_path}")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("error: mask_ratio must lie between 0 and 1")
    assert "Traceback" not in done.stderr


def test_an_infinite_loss_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan at step .* try a smaller learning_rate"):
        train(tmp_path, "--learning_rate=1e30", "--max_train_steps=20")


def test_a_broken_image_ends_the_process_with_one_line_and_code_2(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        Image.fromarray(photograph("coffee.png")[: 40 + index, :40]).save(images / f"{index}.png")
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:-200])
    command = [
        sys.executable,
        SCRIPT,
        "--config=demo",
        f"--train_dir={images}",
        f"--output_dir={tmp_path / 'output'}",
        "--on_broken_image=error",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error")]
    assert len(errors) == 1 and errors[0].startswith("error: cannot read the image") and "1.png" in errors[0]
    assert "Traceback" not in done.stderr
