"""Training on streams, on augmented images and on data with broken images, through the real loop."""

import json
from collections import Counter

import datasets
import pytest
from PIL import Image
from rows_written import RowsWritten
from training_runs import ROOT, build, finish, launcher, losses, script, train

from energy_transformer.data.demo import photograph
from energy_transformer.utils.errors import UserError


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Options that stream 48 crops in 4 parquet files, one of them broken, and evaluate on others."""
    folder = tmp_path_factory.mktemp("crops")
    pixels = photograph("coffee.png")
    images = [Image.fromarray(pixels[6 * i : 6 * i + 32, 8 * i : 8 * i + 32]) for i in range(60)]
    features = datasets.Features({"image": datasets.Image()})
    parts = {f"train/{shard}.parquet": images[shard:48:4] for shard in range(4)}
    for name, part in {**parts, "held_out/0.parquet": images[48:]}.items():
        rows = [datasets.Image().encode_example(image) for image in part]
        if name == "train/2.parquet":
            rows[5] = {"bytes": b"no image", "path": "damaged.png"}
        (folder / name).parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"image": rows}, features).to_parquet(folder / name)
    return [
        "--streaming", "--shuffle_buffer_size=10", f"--train_dir={folder / 'train'}",
        f"--validation_dir={folder / 'held_out'}", "--max_train_samples=48",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words", [["--gradient_accumulation_steps=2"], ["--dataloader_num_workers=2", "--random_resized_crop", "0.3", "1"]]
)
def test_a_resumed_stream_gives_the_same_losses(tmp_path, crops, words):
    """Six batches an epoch: saved in the middle of one, and after the end of the second."""
    whole = tmp_path / "whole"
    train(whole, *crops, *words, "--max_train_steps=9", "--checkpointing_steps=2")
    expected = losses(whole)
    assert sorted(expected) == list(range(1, 10)) and len(set(expected.values())) == 9
    for step in (2, 8):
        resumed = tmp_path / f"from_{step}"
        resume = ["--max_train_steps=9", f"--resume_from_checkpoint={whole / f'checkpoint-{step}'}"]
        train(resumed, *crops, *words, *resume)
        assert losses(resumed) == {number: loss for number, loss in expected.items() if number > step}


@pytest.mark.slow
def test_two_processes_stream_and_resume(tmp_path, crops):
    whole, options = tmp_path / "whole", [*crops, "--per_device_train_batch_size=4", "--max_train_steps=8"]
    done = finish(launcher("multi_cpu", whole, *options, "--checkpointing_steps=4"))
    assert done.returncode == 0, done.stderr
    resumed = tmp_path / "resumed"
    done = finish(launcher("multi_cpu", resumed, *options, f"--resume_from_checkpoint={whole / 'checkpoint-4'}"))
    assert done.returncode == 0, done.stderr
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 4}


ROWS = 48


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Options that stream 48 images, whose first pixel is their number, in 4 files of 2 row groups."""
    folder = tmp_path_factory.mktemp("numbered")
    features = datasets.Features({"image": datasets.Image()})
    pixels = photograph("coffee.png")[:32, :32].copy()
    for shard in range(4):
        rows = []
        for number in range(12 * shard, 12 * shard + 12):
            pixels[0, 0] = number
            rows.append(datasets.Image().encode_example(Image.fromarray(pixels)))
        data = datasets.Dataset.from_dict({"image": rows}, features)
        data.to_parquet(folder / f"{shard}.parquet", batch_size=6)
    return ["--streaming", "--shuffle_buffer_size=10", f"--train_dir={folder}", f"--validation_dir={folder}"]


@pytest.mark.parametrize(
    "runs",
    [
        [(1, 0), (2, 0), (1, 2)],
        pytest.param([(2, 0), (1, 0), (2, 2)], marks=pytest.mark.slow),
        pytest.param([(2, 2), (1, 4), (2, 0)], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_processes_and_workers_use_the_rows_that_are_left(tmp_path, numbered, runs):
    """Real runs of (processes, workers), each going on from the last state of the one before, with 8 images a step."""
    words = [*numbered, "--global_batch_size=8", "--per_device_train_batch_size=1", "--horizontal_flip=false"]
    words += ["--resume_from_checkpoint=latest"]
    for (processes, workers), steps in zip(runs, (3, 8, 26), strict=True):
        own = [*words, f"--dataloader_num_workers={workers}", f"--max_train_steps={steps}"]
        own += [f"--checkpointing_steps={steps}"]
        if processes == 1:
            train(tmp_path, *own, kind=RowsWritten)
            continue
        done = finish(launcher("multi_cpu", tmp_path, *own, script=ROOT / "tests" / "rows_written.py"))
        assert done.returncode == 0, done.stderr
    used = [tuple(map(int, line.split())) for path in tmp_path.glob("rows-*") for line in path.read_text().splitlines()]
    assert Counter(step for step, _, _ in used) == dict.fromkeys(range(26), 8)
    for epoch in range(5):
        rows = sorted(number for _, each, number in used if each == epoch)
        assert rows == sorted(set(rows)), "none is used twice"
        assert epoch > 2 or rows == list(range(ROWS)), "and none is left out"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eval_steps=epoch"], "eval_steps must be a number where the number of training images is not known"),
        (["--random_resized_crop", "0.5"], "random_resized_crop must be shares of the area"),
        (["--color_jitter=2"], r"color_jitter must lie in \[0, 1\]"),
        (["--shuffle_buffer_size=0"], "shuffle_buffer_size must be at least 1"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, crops, words, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, *crops, *words)


@pytest.mark.parametrize("streaming", [True, False])
def test_broken_images_are_told_once_and_counted(tmp_path, crops, streaming, caplog):
    """48 images, one broken: decoded once and left out, or passed over in each of the two epochs of a stream."""
    train(tmp_path, *(crops if streaming else crops[1:]), "--max_train_steps=12", "--color_jitter=0.4")
    told = [message for message in caplog.messages if "passed over" in message]
    assert len(told) == 1 and ": cannot read the image damaged.png: it is of no format" in told[0]
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["train_broken_images"] == (2 if streaming else 1) and results["eval_broken_images"] == 0


def test_a_broken_image_is_fatal_on_request(tmp_path, crops):
    done = finish(
        script(tmp_path, *crops, "--max_train_steps=12", "--on_broken_image=error", "--dataloader_num_workers=1")
    )
    assert done.returncode == 2
    assert done.stderr.count("error: cannot read the image damaged.png") == 1
    assert "Traceback" not in done.stderr
