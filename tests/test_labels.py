"""Which column holds the labels, what they are called, and what is wrong with them."""

import tracemalloc

import datasets
import pytest
from PIL import Image

from energy_transformer.data import load_image_datasets
from energy_transformer.data.demo import photograph
from energy_transformer.data.labels import prepare_labels
from energy_transformer.utils.errors import UserError

CATS = datasets.ClassLabel(names=["cat", "dog"])


def splits(train, validation, feature, column="label"):
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {column: values, "number": [0.5] * len(values)},
                features=datasets.Features({column: feature, "number": datasets.Value("float32")}),
            )
            for name, values in (("train", train), ("validation", validation))
        }
    )


def numbers(labels, made):
    return {name: labels.numbers(split).tolist() for name, split in made.items()}


def test_a_class_label_is_found_by_its_type():
    made = splits([0, 1, 1], [1], CATS, column="animal")
    labels = prepare_labels(made)
    assert (labels.column, labels.names) == ("animal", ["cat", "dog"])
    assert numbers(labels, made) == {"train": [0, 1, 1], "validation": [1]}


@pytest.mark.parametrize(
    ("feature", "train", "validation", "names", "expected"),
    [
        ("string", ["dog", "cat", "dog"], ["cat"], ["cat", "dog"], ([1, 0, 1], [0])),
        ("large_string", ["dog", "cat", "dog"], ["cat"], ["cat", "dog"], ([1, 0, 1], [0])),
        ("int64", [2, 0, 1], [1], ["0", "1", "2"], ([2, 0, 1], [1])),
        ("int64", [20755, 1003, 1003], [20755], ["1003", "20755"], ([1, 0, 0], [1])),
        ("uint8", [10, 9, 200], [9], ["9", "10", "200"], ([1, 0, 2], [0])),
        ("int64", [2, 2_000_000_000_000], [2], ["2", "2000000000000"], ([0, 1], [0])),
        ("bool", [True, False], [True], ["False", "True"], ([1, 0], [1])),
        ("float32", [3.0, 1.0, 10.0], [10.0], ["1", "3", "10"], ([1, 0, 2], [2])),
        ("float64", [3.0, 1.0], [1.0], ["1", "3"], ([1, 0], [0])),
    ],
)
def test_text_and_numbers_become_labels(feature, train, validation, names, expected):
    made = splits(train, validation, datasets.Value(feature))
    labels = prepare_labels(made, "label")
    assert labels.names == names
    assert tuple(numbers(labels, made).values()) == expected


def test_names_in_another_order_are_put_in_that_of_training():
    both = splits([0, 1], [0], CATS)
    other = splits([0, 1], [0, 1, 1], datasets.ClassLabel(names=["dog", "cat"]))["validation"]
    labels = prepare_labels(datasets.DatasetDict({"train": both["train"], "validation": other}))
    assert labels.numbers(other).tolist() == [1, 0, 0]


def test_the_largest_id_costs_nothing():
    made = splits([0, 10**15] * 3, [0], datasets.Value("int64"))
    tracemalloc.start()
    labels = prepare_labels(made, "label")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert labels.names == ["0", str(10**15)] and most < 2**24


@pytest.mark.parametrize("feature", [CATS, datasets.Value("int64")])
def test_labels_of_a_stream(feature):
    made = splits([1, 0, 1, 1], [0], feature)
    streams = {"train": made["train"].to_iterable_dataset(num_shards=2), "validation": made["validation"]}
    labels = prepare_labels(datasets.DatasetDict(streams), "label")
    assert labels.names == (["cat", "dog"] if feature is CATS else ["0", "1"])
    feature = streams["train"].features["label"]
    assert [labels.number(row["label"], feature) for row in streams["train"]] == [1, 0, 1, 1]


@pytest.mark.parametrize("missing", [None, -1])
def test_a_missing_label_under_other_names_is_told(missing):
    both = splits([0, 1], [0], CATS)
    other = splits([0], [0, missing, 1], datasets.ClassLabel(names=["dog", "cat"]))["validation"]
    with pytest.raises(UserError, match=f"split 'validation': column 'label' holds {missing}, which is no label"):
        prepare_labels(datasets.DatasetDict({"train": both["train"], "validation": other}))


def test_folders_are_labels(tmp_path):
    image = photograph("coffee.png")
    for index, name in enumerate(["cup", "cup", "table", "table"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(image[index * 10 : index * 10 + 40, :40]).save(tmp_path / name / f"{index}.png")
    loaded, _ = load_image_datasets(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    labels = prepare_labels(loaded)
    assert (labels.column, labels.names) == ("label", ["cup", "table"])
    assert sorted(labels.numbers(loaded["train"]).tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("made", "name", "message"),
    [
        (splits([0.5], [0.5], datasets.Value("float32")), None, r"no column with labels; .* label \(float32\), number"),
        (splits([0, 1], [0], CATS), "lable", "label_column_name: there is no column 'lable'"),
        (splits([0, 1], [0], CATS), "number", "label_column_name: column 'number' holds 0.5, which is no whole number"),
        (
            splits([b"0", b"1"], [b"0"], datasets.Value("binary")),
            "label",
            "label_column_name: the column 'label' holds no labels",
        ),
        (
            splits([[0], [1]], [[0]], datasets.List(CATS)),
            "label",
            "holds several labels of an image, and .* learns one",
        ),
        (splits([0, 1.5], [0], datasets.Value("float32")), "label", "'label' holds 1.5, which is no whole number"),
        (splits([0, 1], [float("nan")], datasets.Value("float32")), "label", "'label' holds nan, which is no whole"),
        (
            splits([0, 1], [-1], CATS),
            None,
            r"split 'validation': column 'label' holds -1, which is no label in \[0, 2\)",
        ),
        (
            splits([0, None], [0], CATS),
            None,
            r"split 'train': column 'label' holds None, which is no label in \[0, 2\)",
        ),
        (
            splits(["a", "b"], ["c"], datasets.Value("string")),
            "label",
            "'validation': column 'label' holds 'c', which no training",
        ),
        (splits(["a", None], ["a"], datasets.Value("string")), "label", "lacks the label of some images"),
        (splits([0, 1], [7], datasets.Value("int64")), "label", "split 'validation'"),
        (splits([-1, 1], [0], datasets.Value("int64")), "label", "split 'train' holds -1, below 0"),
        (splits([0, 0], [0], datasets.ClassLabel(names=["one"])), None, "at least 2 labels; column 'label' has one"),
    ],
)
def test_what_is_wrong_is_told(made, name, message):
    with pytest.raises(UserError, match=message) as error:
        prepare_labels(made, name)
    assert "\n" not in str(error.value)


def test_two_columns_of_labels_are_not_guessed_between():
    both = splits([0, 1], [0], CATS)
    both = datasets.DatasetDict(
        {n: s.add_column("coarse", list(s["label"])).cast_column("coarse", CATS) for n, s in both.items()}
    )
    with pytest.raises(UserError, match="more than one column with labels; name one with label_column_name"):
        prepare_labels(both)
    assert prepare_labels(both, "coarse").column == "coarse"
