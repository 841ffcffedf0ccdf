"""Which column holds the labels, what they are called, and what is wrong with them."""

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


def test_a_class_label_is_found_by_its_type():
    found, column, names = prepare_labels(splits([0, 1, 1], [1], CATS, column="animal"))
    assert (column, names) == ("animal", ["cat", "dog"])
    assert list(found["train"]["animal"]) == [0, 1, 1]


@pytest.mark.parametrize(
    ("feature", "train", "validation", "names", "numbers"),
    [
        (datasets.Value("string"), ["dog", "cat", "dog"], ["cat"], ["cat", "dog"], ([1, 0, 1], [0])),
        (datasets.Value("int64"), [2, 0, 1], [1], ["0", "1", "2"], ([2, 0, 1], [1])),
    ],
)
def test_text_and_numbers_become_labels(feature, train, validation, names, numbers):
    found, _, own_names = prepare_labels(splits(train, validation, feature), "label")
    assert own_names == names
    assert (list(found["train"]["label"]), list(found["validation"]["label"])) == numbers
    assert found["validation"].features["label"].names == names


def test_names_in_another_order_are_put_in_that_of_training():
    both = splits([0, 1], [0], CATS)
    other = splits([0, 1], [0, 1, 1], datasets.ClassLabel(names=["dog", "cat"]))["validation"]
    found, _, _ = prepare_labels(datasets.DatasetDict({"train": both["train"], "validation": other}))
    assert list(found["validation"]["label"]) == [1, 0, 0]


@pytest.mark.parametrize("missing", [None, -1])
def test_a_missing_label_under_other_names_is_told(missing):
    both = splits([0, 1], [0], CATS)
    other = splits([0], [0, missing, 1], datasets.ClassLabel(names=["dog", "cat"]))["validation"]
    with pytest.raises(UserError, match=f"split 'validation' holds {missing}, which is no label"):
        prepare_labels(datasets.DatasetDict({"train": both["train"], "validation": other}))


def test_folders_are_labels(tmp_path):
    image = photograph("coffee.png")
    for index, name in enumerate(["cup", "cup", "table", "table"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(image[index * 10 : index * 10 + 40, :40]).save(tmp_path / name / f"{index}.png")
    loaded, _ = load_image_datasets(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    found, column, names = prepare_labels(loaded)
    assert (column, names, sorted(found["train"]["label"])) == ("label", ["cup", "table"], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("made", "name", "message"),
    [
        (splits([0.5], [0.5], datasets.Value("float32")), None, r"no column with labels; .* label \(Value\), number"),
        (splits([0, 1], [0], CATS), "lable", "label_column_name: there is no column 'lable'"),
        (splits([0, 1], [0], CATS), "number", "label_column_name: the column 'number' holds no labels"),
        (splits([0, 1], [-1], CATS), None, r"split 'validation' holds -1, which is no label in \[0, 2\)"),
        (splits([0, None], [0], CATS), None, r"split 'train' holds None, which is no label in \[0, 2\)"),
        (splits(["a", "b"], ["c"], datasets.Value("string")), "label", "'validation' holds 'c', which no training"),
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
    assert prepare_labels(both, "coarse")[1] == "coarse"
