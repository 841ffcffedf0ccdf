"""The `evaluate` modules: against their definitions, batch by batch, across processes, without the network."""

import doctest
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import energy_transformer.metrics
from energy_transformer.metrics import METRICS, load_metric, masked_squared_error
from energy_transformer.metrics.confusion import Confusion

FOLDER = Path(energy_transformer.metrics.__file__).parent
PATCH = (4, 8)


@pytest.fixture
def batch():
    """Seven images, predictions of them, and masks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, 3, 16, 24, generator=generator)
    noise = torch.randn(images.shape, generator=generator) * torch.linspace(0.01, 0.3, 7)[:, None, None, None]
    masks = torch.rand(7, 12, generator=generator) < 0.5
    return {"predictions": images + noise, "references": images, "masks": masks, "patch_size": PATCH}


def inputs(name, batch):
    return batch if name == "masked_mse" else {key: batch[key] for key in ("predictions", "references")}


def part(batch, chosen):
    return {key: values if key == "patch_size" else values[chosen] for key, values in batch.items()}


def slow_psnr(prediction, reference):
    return -10 * np.log10(np.mean((prediction - reference) ** 2))


def slow_ssim(prediction, reference):
    """Wang et al. 2004, window by window, of one channel (H, W) in float64."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    similarities = []
    for top in range(prediction.shape[0] - 10):
        for left in range(prediction.shape[1] - 10):
            x, y = (image[top : top + 11, left : left + 11] for image in (prediction, reference))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
            similarities.append(luminance * (2 * covariance + 0.03**2) / (var_x + var_y + 0.03**2))
    return np.mean(similarities)


def expected(name, batch):
    """The score of each image by its definition."""
    if name == "masked_mse":
        return masked_squared_error(batch["predictions"], batch["references"], batch["masks"], PATCH).double().numpy()
    pairs = [(batch[key].double().numpy()) for key in ("predictions", "references")]
    if name == "psnr":
        return np.array([slow_psnr(*pair) for pair in zip(*pairs, strict=True)])
    return np.array([np.mean([slow_ssim(*c) for c in zip(*pair, strict=True)]) for pair in zip(*pairs, strict=True)])


@pytest.mark.parametrize("name", ["masked_mse", "psnr", "ssim"])
def test_scores_of_images_follow_the_definition(name, batch):
    scores = load_metric(name).score(**inputs(name, batch))
    np.testing.assert_allclose(scores.double().numpy(), expected(name, batch), rtol=1e-9)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", ["masked_mse", "psnr", "ssim"])
def test_batch_by_batch_is_the_mean_over_images(name, batch, in_memory, tmp_path):
    metric = load_metric(name, keep_in_memory=in_memory, cache_dir=str(tmp_path))
    for chosen in (slice(0, 4), slice(4, 6)):
        metric.add_batch(**inputs(name, part(batch, chosen)))
    last = {key.removesuffix("s"): value[6] for key, value in batch.items() if key != "patch_size"}
    options = {"masks": batch["masks"][6:], "patch_size": PATCH} if name == "masked_mse" else {}
    metric.add(prediction=last["prediction"].numpy(), reference=last["reference"].numpy(), **options)
    assert len(metric) == 7
    assert metric.compute() == {name: pytest.approx(expected(name, batch).mean(), rel=1e-9)}
    again = metric.compute(**inputs(name, batch))
    assert again[name] == pytest.approx(expected(name, batch).mean(), rel=1e-9), "empty after each compute"


def test_scores_can_be_given_in_place_of_images(batch):
    metric = load_metric("psnr", keep_in_memory=True)
    scores = metric.score(**inputs("psnr", batch))
    metric.add_batch(scores=scores[:3])
    metric.add_batch(scores=scores[3:])
    assert metric.compute()["psnr"] == pytest.approx(scores.mean().item(), rel=1e-12)


def test_the_interval_is_that_of_students_t():
    scores = np.random.default_rng(0).normal(1.0, 3.0, 20)
    metric = load_metric("psnr", keep_in_memory=True)
    metric.add_batch(scores=scores)
    low, high = scipy.stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    expected = {"psnr": scores.mean(), "psnr_low": low, "psnr_high": high}
    assert metric.compute(confidence_level=0.9) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_picture_has_finite_psnr(batch):
    images = batch["references"]
    assert load_metric("psnr").score(images, images).tolist() == [100.0] * 7


def test_accuracy_and_confusion():
    predictions, references = np.array([0, 2, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 0])
    assert load_metric("accuracy").compute(predictions=predictions, references=references) == {"accuracy": 0.6}
    confusion = load_metric("confusion_matrix")
    confusion.add_batch(predictions=predictions[:2], references=references[:2])
    confusion.add_batch(predictions=predictions[2:], references=references[2:])
    matrix = [[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert confusion.compute(num_labels=4) == {"confusion_matrix": matrix}


def test_confused_pairs_are_those_of_the_matrix():
    generator = np.random.default_rng(0)
    predictions, references = generator.integers(0, 7, (2, 200))
    predictions[:60] = references[:60]
    matrix = np.array(
        load_metric("confusion_matrix").compute(predictions=predictions, references=references, num_labels=9)[
            "confusion_matrix"
        ]
    )
    confusion = Confusion.of(torch.from_numpy(predictions), torch.from_numpy(references))
    assert np.array_equal(confusion.images(9), matrix.sum(1))
    assert np.array_equal(confusion.right(9), np.diagonal(matrix))
    assert np.array_equal(confusion.matrix(np.arange(9)), matrix)
    errors = matrix - np.diag(np.diagonal(matrix))
    chosen = confusion.most_confused(9, 3)
    assert np.array_equal(chosen, np.sort(np.argsort(-(errors.sum(0) + errors.sum(1)), kind="stable")[:3]))
    assert np.array_equal(confusion.matrix(chosen), matrix[np.ix_(chosen, chosen)])


@pytest.mark.parametrize("name", METRICS)
def test_the_metric_says_what_it_is_and_its_examples_are_true(name):
    metric = load_metric(name)
    assert metric.name == name and metric.description and "Args:" in metric.inputs_description
    assert name in ("accuracy", "confusion_matrix") or metric.citation.startswith("@")
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, None, None)
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


LOAD_EACH = """
import json, sys, evaluate
metrics = {name: evaluate.load(f"{sys.argv[1]}/{name}.py") for name in sys.argv[2:]}
metrics["psnr"].add_batch(predictions=[[[[0.5] * 16] * 16] * 3], references=[[[[0.25] * 16] * 16] * 3])
print(json.dumps([{name: type(metric).__name__ for name, metric in metrics.items()}, metrics["psnr"].compute()]))
"""


def test_evaluate_loads_the_files_without_the_network(tmp_path):
    """In a new process whose Hugging Face caches are empty, and which may not reach the Hub."""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_EACH, FOLDER, *METRICS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded, values = json.loads(done.stdout)
    assert loaded == METRICS
    assert values["psnr"] == pytest.approx(-20 * np.log10(0.25))


def labels():
    return {"predictions": torch.tensor([0, 1, 2, 0, 1, 2, 1]), "references": torch.tensor([0, 2, 2, 0, 1, 1, 1])}


def one_of_two(process_id, cache_dir, batches, results):
    for name, (batch, options) in batches.items():
        metric = load_metric(name, num_process=2, process_id=process_id, experiment_id="two", cache_dir=cache_dir)
        metric.add_batch(**part(batch, slice(0, 5) if process_id == 0 else slice(5, 7)))
        results.put((process_id, name, metric.compute(**options)))


def test_two_processes_give_the_numbers_of_one(batch, tmp_path):
    batches = {"masked_mse": (batch, {"confidence_level": 0.9}), "accuracy": (labels(), {})}
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=one_of_two, args=(i, str(tmp_path), batches, results)) for i in (0, 1)]
    for process in processes:
        process.start()
    found = {(i, name): result for i, name, result in (results.get(timeout=200) for _ in range(4))}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for name, (everything, options) in batches.items():
        whole = load_metric(name, keep_in_memory=True)
        whole.add_batch(**everything)
        assert found[0, name] == pytest.approx(whole.compute(**options), rel=1e-12)
        assert found[1, name] is None, "the first process has the result"


SMALL = dict.fromkeys(("predictions", "references"), torch.zeros(1, 3, 10, 24))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("psnr", {"predictions": torch.zeros(2, 3, 4, 4)}, r"of one shape .* got \(2, 3, 4, 4\) and \(7, 3, 16, 24\)"),
        ("ssim", {"predictions": torch.zeros(7, 3), "references": torch.zeros(7, 3)}, "images of one shape"),
        ("masked_mse", {"masks": torch.zeros(7, 11)}, r"masks must have shape .* = \(7, 12\), got \(7, 11\)"),
        ("ssim", SMALL, "at least 11x11 pixels, got 10x24"),
        ("psnr", {"references": torch.arange(7 * 3 * 16 * 24).view(7, 3, 16, 24) % 256}, "data_range is 1.0, but the"),
        ("ssim", {"references": torch.linspace(-1, 1, 7 * 3 * 16 * 24).view(7, 3, 16, 24)}, "lie between -1 and 1"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(name, batch, changes, message):
    with pytest.raises(ValueError, match=message):
        load_metric(name).add_batch(**inputs(name, {**batch, **changes}))


def test_wrong_labels_levels_and_names_are_named():
    with pytest.raises(ValueError, match=r"references must lie in \[0, 2\), got 0 to 2"):
        load_metric("confusion_matrix").compute(predictions=[0, 1], references=[0, 2], num_labels=2)
    with pytest.raises(ValueError, match=r"name must be one of accuracy, .* got 'lpips'"):
        load_metric("lpips")
    for scores, level, message in (
        ([1.0], 0.95, "at least 2 images, got 1"),
        ([1.0, 2.0], 95, "must lie between 0 and 1"),
    ):
        metric = load_metric("psnr", keep_in_memory=True)
        metric.add_batch(scores=scores)
        with pytest.raises(ValueError, match=message):
            metric.compute(confidence_level=level)
