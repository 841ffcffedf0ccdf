"""A dataset in the layout of uoft-cs/cifar10, made of the embedded photographs."""

from pathlib import Path

import datasets

from energy_transformer.data.demo import load_demo_dataset

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(folder: Path, train: int = 512, test: int = 64) -> Path:
    """Parquet files and a card with the columns, class names and paths of the real one.

    The pictures are 32×32 crops of eight photographs; the label is the photograph's number, so the names of the
    classes say nothing here and the last two are empty.
    """
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    splits = {}
    for split, count in (("train", train), ("test", test)):
        rows = load_demo_dataset()[split].select(range(count)).rename_column("image", "img")
        splits[split] = datasets.Dataset.from_dict(rows.to_dict(), features=features)
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        splits[split].to_parquet(path)
    names = "\n".join(f"          '{index}': {name}" for index, name in enumerate(NAMES))
    size = "  - name: {}\n    num_bytes: {}\n    num_examples: {}"
    sizes = "\n".join(size.format(split, rows.data.nbytes, len(rows)) for split, rows in splits.items())
    bytes_in_memory = sum(rows.data.nbytes for rows in splits.values())
    bytes_in_files = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    files = "\n".join(f"  - split: {split}\n    path: plain_text/{split}-*" for split in splits)
    card = _CARD.format(
        names=names, sizes=sizes, files=files, bytes_in_files=bytes_in_files, bytes_in_memory=bytes_in_memory
    )
    (folder / "README.md").write_text(card)
    return folder


_CARD = """---
license: unknown
task_categories:
- image-classification
dataset_info:
  config_name: plain_text
  features:
  - name: img
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
{names}
  splits:
{sizes}
  download_size: {bytes_in_files}
  dataset_size: {bytes_in_memory}
configs:
- config_name: plain_text
  data_files:
{files}
  default: true
---
# Crops of photographs in the layout of CIFAR-10
"""
