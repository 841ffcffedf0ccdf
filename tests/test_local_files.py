"""Which files of a folder are read as images, and of which split; nothing that lies beside them hides any."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from energy_transformer.data import load_image_datasets
from energy_transformer.data.holding_out import stratified
from energy_transformer.data.local_files import find_local_files
from energy_transformer.utils.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(gray=0):
    file = io.BytesIO()
    Image.new("L", (8, 8), gray).save(file, "PNG")
    return file.getvalue()


def write(folder, *names, gray=0):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(gray))
    return folder


def write_parquet(path, gray, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"img": [{"bytes": png(gray), "path": None}] * count}
    datasets.Dataset.from_dict(rows, datasets.Features({"img": datasets.Image()})).to_parquet(path)


def grays(split, column="image"):
    return [image.getpixel((0, 0)) for image in split[column]]


def numbered(prefix, count):
    return [f"{prefix}{number}.png" for number in range(count)]


def read(folder):
    found = find_local_files(folder)
    return {
        split: [str(file.relative_to(folder)) for file in files] for split, files in found.files.items()
    }, found.told


@pytest.mark.parametrize("option", ["train_dir", "dataset_name", "validation_dir"])
@pytest.mark.parametrize(
    ("asked", "other"), [("scan[1]", "scan1"), ("set?", "set2"), ("v*", "v10"), ("a{1,2}", "a1"), ("#1%20&", "x")]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_is_never_a_pattern(tmp_path, option, asked, other, streaming):
    write(tmp_path / asked, *numbered("", 6), "[a]*?.png")
    write(tmp_path / other, *numbered("", 6), gray=255)
    write(tmp_path / "held out", *numbered("", 3))
    others = {"validation_dir" if option != "validation_dir" else "train_dir": str(tmp_path / "held out")}
    options = {option: str(tmp_path / asked), "streaming": streaming, "max_eval_samples": 9, **others}
    splits, _ = load_image_datasets(**options)
    assert grays(splits["validation" if option == "validation_dir" else "train"]) == [0] * 7


@pytest.mark.parametrize("option", ["train_dir", "dataset_name"])
@pytest.mark.parametrize("layout", ["folders", "parquet", "parquet folders", "classes first"])
def test_splits_are_kept(tmp_path, option, layout):
    for split, gray, count in (("train", 10, 7), ("test", 200, 4)):
        match layout:
            case "folders":
                write(tmp_path / "data" / split, *numbered("", count), gray=gray)
            case "parquet":
                write_parquet(tmp_path / "data" / "plain" / f"{split}-00000-of-00001.parquet", gray, count)
            case "parquet folders":
                write_parquet(tmp_path / "data" / split / "0.parquet", gray, count)
            case "classes first":
                write(tmp_path / "data" / "cat" / split, *numbered("", count), gray=gray)
    splits, column = load_image_datasets(**{option: str(tmp_path / "data")})
    assert (grays(splits["train"], column), grays(splits["validation"], column)) == ([10] * 7, [200] * 4)
    held_out, _ = load_image_datasets(validation_dir=str(tmp_path / "data"), image_column_name=None, train_dir=str(
        tmp_path / "data"))  # fmt: skip
    assert grays(held_out["validation"], column) == [200] * 4


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["cat/1.png", "dog/1.png"], {"train": ["cat/1.png", "dog/1.png"]}),
        (["train/a/1.png", "val/a/1.png"], {"train": ["train/a/1.png"], "validation": ["val/a/1.png"]}),
        # a class called train is no split, and neither one called test inside a split
        (["car/1.png", "ship/1.png", "train/1.png"], {"train": ["car/1.png", "ship/1.png", "train/1.png"]}),
        (["train/test/1.png", "val/train/1.png"], {"train": ["train/test/1.png"], "validation": ["val/train/1.png"]}),
        # images beside splits are left, images beside a held-out folder are those to train on
        (["train/1.png", "test/2.png", "extra/3.png"], {"train": ["train/1.png"], "test": ["test/2.png"]}),
        (["1.png", "2.png", "test/3.png"], {"train": ["1.png", "2.png"], "test": ["test/3.png"]}),
        # one odd name decides nothing, names for all do
        (["1.png", "2.png", "test.png"], {"train": ["1.png", "2.png", "test.png"]}),
        (["train_1.png", "test_2.png"], {"train": ["train_1.png"], "test": ["test_2.png"]}),
        (["test_1.png", "test_2.png"], {"train": ["test_1.png", "test_2.png"]}),
    ],
)  # fmt: skip
def test_to_which_split_an_image_belongs(tmp_path, files, splits):
    assert read(write(tmp_path, *files))[0] == splits


@pytest.mark.parametrize(
    ("stray", "told"),
    [
        ("notes.txt", "left: 1 .txt"),
        ("run.eval", "left: 1 .eval"),
        ("task.toml", "left: 1 .toml"),
        ("labels.csv", "left: 1 .csv"),
        ("embeddings.parquet", "left: 1 .parquet"),
        ("a.tar.gz", "left: 1 .gz"),
        ("archive.zip", "left: 1 .zip"),
        ("metadata.csv", "left: 1 metadata.csv"),
        ("metadata.jsonl", "left: 1 metadata.jsonl"),
        ("metadata.parquet", "left: 1 metadata.parquet"),
        (".hidden.png", "left: 1 hidden"),
        ("__pycache__/x.png", "left: 1 hidden"),
        ("nowhere.png", "left: 1 broken links"),
        ("folder.link", "left: 1 linked folders"),
        ("tar.tar", "left: 1 .tar"),
        ("noextension", "left: 1 without an extension"),
        ("README.md", ""),
    ],
)  # fmt: skip
def test_a_stray_file_hides_nothing(tmp_path, stray, told):
    folder = write(tmp_path / "data", *numbered("cat/", 3), *numbered("dog/", 3))
    path = folder / stray
    path.parent.mkdir(exist_ok=True)
    if "link" in stray:
        os.symlink(tmp_path, path)
    elif stray == "nowhere.png":
        os.symlink(tmp_path / "not there", path)
    elif stray.endswith(".parquet"):
        pandas.DataFrame({"x": [1.0]}).to_parquet(path)
    elif stray.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("cat/0.png", png())
    else:
        path.write_text("x,y\n1,2\n")
    splits, line = read(folder)
    assert len(splits["train"]) == 6 and line.endswith(told)
    loaded, _ = load_image_datasets(train_dir=str(folder))
    assert len(loaded["train"]) + len(loaded["validation"]) == 6
    assert loaded["train"].features["label"].names == ["cat", "dog"]


def test_one_line_tells_what_is_read(tmp_path, capsys):
    folder = write(tmp_path / "data", *numbered("train/cat/", 3), *numbered("train/dog/", 3), *numbered("val/cat/", 2))
    (folder / "notes.txt").write_text("")
    load_image_datasets(train_dir=str(folder))
    line = f"train_dir {folder}: images: 6 train, 2 validation, 2 folders as labels; left: 1 .txt\n"
    assert capsys.readouterr().err.startswith(line)


def test_a_linked_file_is_read(tmp_path):
    write(tmp_path / "store", "1.png")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "store" / "1.png", tmp_path / "data" / "a.png")
    assert read(tmp_path / "data")[0] == {"train": ["a.png"]}


@pytest.mark.parametrize(
    ("files", "labels", "told"),
    [
        (["cat/1.png", "dog/2.png"], ["cat", "dog"], ", 2 folders as labels"),
        (["pets/cat/1.png", "wild/dog/2.png"], ["cat", "dog"], ", 2 folders as labels"),
        (["cat/1.png", "dog/deeper/2.png"], None, ", no labels, as they do not lie equally deep"),
        (["1.png", "2.png"], None, ""),
        (["train/1.png", "test/2.png"], None, ""),
    ],
)
def test_which_folders_are_labels(tmp_path, files, labels, told):
    folder = write(tmp_path / "data", *files)
    found = find_local_files(folder)
    assert found.told.partition("train")[2].partition("test")[2].endswith(told) or found.told.endswith(told)
    if "test" not in found.files:
        loaded, _ = load_image_datasets(train_dir=str(folder), train_val_split=0.5)
        feature = loaded["train"].features.get("label")
        assert (feature and feature.names) == labels


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_are_columns(tmp_path, suffix):
    folder = write(tmp_path / "data", *numbered("a/", 3), "b/not_listed.png")
    rows = pandas.DataFrame({"file_name": numbered("a/", 3), "age": [1, 2, 3]})
    path = folder / f"metadata.{suffix}"
    if suffix == "csv":
        rows.to_csv(path, index=False)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows.to_dict("records")))
    else:
        rows.to_parquet(path)
    assert find_local_files(folder).told.endswith(f", as metadata.{suffix} lists them")
    loaded, _ = load_image_datasets(train_dir=str(folder), train_val_split=0.3)
    assert sorted([*loaded["train"]["age"], *loaded["validation"]["age"]]) == [1, 2, 3]


def test_metadata_of_each_split(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        folder = write(tmp_path / "data" / split, *numbered("", count))
        rows = pandas.DataFrame({"file_name": numbered("", count), "kind": ["a", "b", "a"][:count]})
        rows.to_csv(folder / "metadata.csv", index=False)
    loaded, _ = load_image_datasets(train_dir=str(tmp_path / "data"))
    assert (list(loaded["train"]["kind"]), list(loaded["validation"]["kind"])) == (["a", "b", "a"], ["a", "b"])


def test_what_takes_the_most_room_is_read(tmp_path):
    """A clone of a dataset repository with pictures for its card; parquet files without images count for nothing."""
    write_parquet(tmp_path / "data" / "part-1.parquet", 3, 500)
    write(tmp_path, *numbered("assets/", 3))
    splits, told = read(tmp_path)
    assert splits == {"train": ["data/part-1.parquet"]} and told.endswith("left: 3 .png")


def test_an_archive_alone_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "images.zip", "w") as archive:
        for label in ("cat", "dog"):
            for number in range(3):
                archive.writestr(f"{label}/{number}.png", png())
    loaded, _ = load_image_datasets(train_dir=str(tmp_path / "data"))
    assert len(loaded["train"]) + len(loaded["validation"]) == 6


def test_tar_files_keep_their_splits(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        path = tmp_path / "data" / f"{split}-000.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for number in range(count):
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(png())
                archive.addfile(member, io.BytesIO(png()))
    loaded, _ = load_image_datasets(train_dir=str(tmp_path / "data"))
    assert (len(loaded["train"]), len(loaded["validation"])) == (4, 2)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"train_dir: no images could be read from .*; left: 1 \.txt"):
        load_image_datasets(train_dir=str(tmp_path / "data"))


def test_a_folder_without_configurations(tmp_path):
    write(tmp_path, *numbered("", 3))
    with pytest.raises(UserError, match=r"declares no configurations, and dataset_config_name is plain"):
        load_image_datasets(str(tmp_path), "plain")


def test_a_folder_of_held_out_images_alone(tmp_path):
    write(tmp_path, *numbered("test/", 3))
    with pytest.raises(UserError, match=r"train_dir .* has no split 'train', only test"):
        load_image_datasets(train_dir=str(tmp_path))


# Columns that are said to hold images


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["path", "relative path", "bytes", "struct", "struct of paths", "struct and more"])
def test_a_column_is_one_of_images_when_it_is_named(tmp_path, kind, streaming):
    images = write(tmp_path / "files", *numbered("", 4), gray=7)
    paths = [str(images / name) for name in numbered("", 4)]
    values = {
        "path": paths,
        "relative path": [f"files/{name}" for name in numbered("", 4)],
        "bytes": [Path(path).read_bytes() for path in paths],
        "struct": [{"bytes": Path(path).read_bytes(), "path": None} for path in paths],
        "struct of paths": [{"bytes": None, "path": path} for path in paths],
        "struct and more": [{"height": 8, "bytes": Path(path).read_bytes(), "path": "x.png"} for path in paths],
    }
    pandas.DataFrame({"n": range(4), "picture": values[kind]}).to_parquet(tmp_path / "train.parquet")
    location = str(tmp_path / "train.parquet")
    options = {"validation_dir": location, "streaming": streaming, "max_eval_samples": 4}
    if "struct" not in kind:
        with pytest.raises(UserError, match="no column with images; name one with image_column_name"):
            load_image_datasets(train_dir=location, **options)
    loaded, column = load_image_datasets(train_dir=location, image_column_name="picture", **options)
    assert column == "picture"
    for split in loaded.values():
        assert isinstance(split.features["picture"], datasets.Image)
        assert grays(split, column) == [7] * 4


def test_a_missing_image_in_a_named_column_is_none(tmp_path):
    pandas.DataFrame({"picture": [png(), None]}).to_parquet(tmp_path / "a.parquet")
    options = {"train_dir": str(tmp_path / "a.parquet"), "validation_dir": str(tmp_path / "a.parquet")}
    loaded, _ = load_image_datasets(image_column_name="picture", **options)
    assert loaded["train"][1]["picture"] is None


# Held-out images


def test_held_out_images_are_drawn_evenly_from_the_labels(tmp_path):
    names = [name for label, count in (("a", 40), ("b", 20), ("c", 1)) for name in numbered(f"{label}/", count)]
    write(tmp_path / "data", *names)
    for seed in range(3):
        loaded, _ = load_image_datasets(train_dir=str(tmp_path / "data"), train_val_split=0.2, seed=seed)
        assert np.bincount(loaded["validation"]["label"], minlength=3).tolist() in ([8, 4, 0], [9, 4, 0], [8, 5, 0])
        assert np.bincount(loaded["train"]["label"], minlength=3).sum() + len(loaded["validation"]) == 61


@pytest.mark.parametrize(
    ("sizes", "count", "numbers"),
    [
        ([10, 10], 4, [2, 2]),
        ([1, 1, 8], 4, [0, 0, 4]),
        ([2, 2], 3, [1, 1]),
        ([100, 50], 30, [20, 10]),
    ],
)
def test_shares_of_the_labels(sizes, count, numbers):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    first, other = stratified(labels, count, 0), stratified(labels, count, 1)
    assert np.bincount(labels[first], minlength=len(sizes)).tolist() == numbers
    assert sorted(first) != sorted(other) and len(set(first.tolist())) == len(first)


def test_labels_of_one_image_each():
    assert len(stratified(np.arange(10), 3, 0)) == 3
