"""Every door to data: local folders, parquet, columns found or named, and each mistake with its reason."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from energy_transformer.data import (
    ImageTensors,
    denormalize,
    load_image_datasets,
    normalize,
    resize_to_tensor,
)
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.utils.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_crops(folder, count, size=40):
    """`count` different PNG crops of a photograph, of two shapes, in a folder for each class."""
    pixels = photograph("coffee.png")
    for index in range(count):
        crop = pixels[10 * index : 10 * index + size, 7 * index : 7 * index + size + 8 * (index % 2)]
        target = folder / f"class_{index % 2}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(target / f"test_{index}.png")  # "test" in the name decides nothing
    return folder


def test_a_folder_of_images_is_split(tmp_path):
    folder = write_crops(tmp_path / "train", 20)
    (folder / "notes.txt").write_text("no image")
    splits, column = load_image_datasets(train_dir=str(folder), train_val_split=0.25)
    assert column == "image"
    assert (len(splits["train"]), len(splits["validation"])) == (15, 5)
    files = splits.cast_column("image", datasets.Image(decode=False))
    paths = [{image["path"] for image in split["image"]} for split in files.values()]
    assert paths[0].isdisjoint(paths[1])


def test_a_folder_with_its_own_held_out_images(tmp_path):
    train, held_out = write_crops(tmp_path / "a", 6), write_crops(tmp_path / "b", 4)
    splits, _ = load_image_datasets(train_dir=str(train), validation_dir=str(held_out))
    assert (len(splits["train"]), len(splits["validation"])) == (6, 4)


def test_a_dataset_folder_with_splits(tmp_path):
    write_crops(tmp_path / "data" / "train", 6)
    write_crops(tmp_path / "data" / "test", 4)
    splits, _ = load_image_datasets(str(tmp_path / "data"))
    assert (len(splits["train"]), len(splits["validation"])) == (6, 4)


@pytest.fixture
def cifar_like(tmp_path):
    """Parquet files with the columns of uoft-cs/cifar10."""
    pixels = photograph("coffee.png")
    crops = [pixels[i : i + 32, i : i + 32] for i in range(12)]
    rows = {"img": [Image.fromarray(crop) for crop in crops], "label": [i % 10 for i in range(12)]}
    data = datasets.Dataset.from_dict(
        rows, features=datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    )
    data.to_parquet(tmp_path / "train.parquet")
    return tmp_path / "train.parquet", crops


def test_parquet_with_the_column_found_and_pixels_exact(cifar_like):
    path, crops = cifar_like
    splits, column = load_image_datasets(train_dir=str(path), validation_dir=str(path), max_eval_samples=3)
    assert column == "img" and len(splits["validation"]) == 3
    images = ImageTensors(splits["train"], column, build_image_processor((32, 32)))
    batch = images.__getitems__([2, 5])
    assert batch["image"].dtype == torch.uint8
    assert np.array_equal(batch["image"].permute(0, 2, 3, 1), np.stack([crops[2], crops[5]]))


def test_images_in_memory_and_on_disk_are_the_same(tmp_path):
    splits, column = load_image_datasets(train_dir=str(write_crops(tmp_path / "train", 6)), train_val_split=0.5)
    processor = build_image_processor((24, 32))
    memory = ImageTensors(splits["train"], column, processor)
    disk = ImageTensors(splits["train"], column, processor, max_cached_bytes=0)
    assert memory.is_decoded and not disk.is_decoded
    for index in range(len(memory)):
        assert memory[index]["image"].shape == (3, 24, 32)
        assert torch.equal(memory[index]["image"], disk[index]["image"])
    assert torch.equal(memory.__getitems__([2, 0])["image"], disk.__getitems__([2, 0])["image"])


def test_pixels_are_those_of_the_saved_processor(tmp_path):
    """Resizing to uint8 and normalizing on the device is what the processor does in one go, to half a gray level."""
    Image.fromarray(photograph("chelsea.png")).save(tmp_path / "cat.png")
    processor = build_image_processor((32, 48))
    images = ImageTensors(
        datasets.Dataset.from_dict({"image": [str(tmp_path / "cat.png")]}).cast_column("image", datasets.Image()),
        "image",
        processor,
    )
    ours = normalize(images[0]["image"][None], processor)
    exact = Image.fromarray(photograph("chelsea.png")[:32, :48])
    torch.testing.assert_close(
        processor(exact, return_tensors="pt")["pixel_values"],
        normalize(resize_to_tensor(exact, processor)[None], processor),
    )
    theirs = processor(Image.open(tmp_path / "cat.png"), return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (1, 3, 32, 48)
    assert (ours - theirs).abs().max() <= 0.51 / 127.5
    torch.testing.assert_close(denormalize(ours, processor) * 255, images[0]["image"][None].float())


def test_gray_images_for_a_model_of_one_channel(tmp_path):
    splits, column = load_image_datasets(train_dir=str(write_crops(tmp_path / "train", 4)), train_val_split=0.5)
    images = ImageTensors(splits["train"], column, build_image_processor((32, 32), num_channels=1))
    assert images[0]["image"].shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_name": "./nowhere"}, "dataset_name: there is no file or folder ./nowhere"),
        ({"train_dir": "nowhere"}, "train_dir: there is no file or folder nowhere"),
        ({"validation_dir": "nowhere"}, "validation_dir: there is no file or folder nowhere"),
        ({"image_column_name": "img"}, r"no column 'img'; the columns are image \(Image\), label \(ClassLabel\)"),
        ({"image_column_name": "label"}, "the column 'label' holds no images"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1, got 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        load_image_datasets(**options)


def test_one_image_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="train_val_split needs 2 training images"):
        load_image_datasets(train_dir=str(write_crops(tmp_path / "train", 1)))


def test_a_share_that_leaves_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match=r"train_val_split 0\.9 of 2 images leaves none to train on"):
        load_image_datasets(train_dir=str(write_crops(tmp_path / "train", 2)), train_val_split=0.9)


def test_some_images_are_drawn_with_the_seed():
    first, again, other = (
        load_image_datasets(max_train_samples=50, max_eval_samples=5, seed=seed)[0]["train"]["label"]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_files_that_are_no_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no image")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for name in ("empty", "text", "broken.parquet"):
        with pytest.raises(UserError, match=f"train_dir: no images could be read from .*{name}") as error:
            load_image_datasets(train_dir=str(tmp_path / name))
        assert "\n" not in str(error.value)
    (tmp_path / "a.csv").write_text("x,y")
    with pytest.raises(UserError, match="neither a folder nor a parquet or tar file"):
        load_image_datasets(train_dir=str(tmp_path / "a.csv"))


def test_a_dataset_without_images(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"no column with images; .* the columns are text \(string\)"):
        load_image_datasets(train_dir=str(tmp_path), train_val_split=0.4)


def test_the_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"Hub cannot be reached for the dataset 'uoft-cs/cifar10'.*--train_dir FOLDER"):
        load_image_datasets("uoft-cs/cifar10")
