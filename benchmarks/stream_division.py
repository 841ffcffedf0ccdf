"""What is read for a row that is used, beside `datasets`' own division: python benchmarks/stream_division.py

Readers (processes × workers) are simulated in this process, each for one epoch of parquet files in a temporary folder.
With torchdata installed, a stream in `StatefulDataLoader` is also resumed from its state in the middle of an epoch.
"""

import argparse
import importlib.util
import itertools
import logging
import tempfile
from collections import Counter
from pathlib import Path

import datasets
from datasets.distributed import split_dataset_by_node
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image
from torch.utils.data._utils import worker as torch_worker

from energy_transformer.data import ImageStream, StreamLoader
from energy_transformer.data.division import Place
from energy_transformer.data.image_processing import build_image_processor

PROCESSOR = build_image_processor((8, 8))
rows_read = 0
_generate_tables = Parquet._generate_tables


def _counted(self, *args, **kwargs):
    global rows_read
    for key, table in _generate_tables(self, *args, **kwargs):
        rows_read += len(table)
        yield key, table


def write(folder: Path, files: int, groups: int, rows: int) -> int:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    image = datasets.Image().encode_example(Image.new("RGB", (8, 8)))
    each = groups * rows
    for file in range(files):
        labels = list(range(file * each, (file + 1) * each))
        data = datasets.Dataset.from_dict({"image": [image] * each, "label": labels}, features)
        data.to_parquet(folder / f"{file:05}.parquet", batch_size=rows)
    return files * each


def open_stream(folder: Path) -> datasets.IterableDataset:
    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def ours(folder: Path, processes: int, workers: int) -> str:
    images = [
        ImageStream(open_stream(folder), "image", PROCESSOR, 1, "label", process=process, num_processes=processes)
        for process in range(processes)
    ]
    per_process = max([stream.divide(workers) for stream in images][-1], 1)
    rows = (
        stream._rows(Place(), process * per_process + worker)
        for process, stream in enumerate(images)
        for worker in range(per_process)
    )
    return _factor(row["label"] for own in rows for _, row in own)


def theirs(folder: Path, processes: int, workers: int, reshard: bool) -> str:
    stream = open_stream(folder)
    stream = (stream.reshard() if reshard else stream).select_columns("label")

    def labels():
        for process, worker in itertools.product(range(processes), range(max(workers, 1))):
            own = split_dataset_by_node(stream, process, processes)
            if workers:
                torch_worker._worker_info = torch_worker.WorkerInfo(id=worker, num_workers=workers, seed=0, dataset=own)
            yield from (row["label"] for row in own)
            torch_worker._worker_info = None

    return _factor(labels())


def _factor(labels) -> str:
    global rows_read
    rows_read = 0
    used = Counter(labels)
    assert max(used.values()) == 1
    return f"{rows_read / used.total():.2f}"


def resumed(folder: Path, num_rows: int) -> None:
    stream = open_stream(folder)
    own = StreamLoader(ImageStream(stream, "image", PROCESSOR, 5, "label", buffer_size=100), 2)
    again = StreamLoader(ImageStream(open_stream(folder), "image", PROCESSOR, 5, "label", buffer_size=100), 2)
    batches = iter(own)
    for _ in range(31):
        next(batches)
    again.load_state_dict([own.state_dict()])
    whole, rest = ([next(it)["label"].tolist() for _ in range(60)] for it in (batches, iter(again)))
    print(f"resumed, ours: {'the same batches' if whole == rest else 'other batches'}")
    if importlib.util.find_spec("torchdata") is None:
        return
    from torchdata.stateful_dataloader import StatefulDataLoader

    def build():
        shuffled = open_stream(folder).select_columns("label").shuffle(seed=0, buffer_size=100)
        return StatefulDataLoader(shuffled, batch_size=5, num_workers=2)

    loader = build()
    batches = iter(loader)
    first = [next(batches) for _ in range(31)]
    other = build()
    other.load_state_dict(loader.state_dict())
    rest = list(other)
    same = [batch["label"].tolist() for batch in batches] == [batch["label"].tolist() for batch in rest]
    seen = Counter(itertools.chain.from_iterable(batch["label"].tolist() for batch in (*first, *rest)))
    print(
        f"resumed, datasets and StatefulDataLoader: {'the same batches' if same else 'other batches'}; of {num_rows} "
        f"rows {num_rows - len(seen)} did not come in the epoch, and {sum(n > 1 for n in seen.values())} came twice"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--groups", type=int, default=20, help="Row groups of a file.")
    parser.add_argument("--rows", type=int, default=3, help="Rows of a group.")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    Parquet._generate_tables = _counted
    with tempfile.TemporaryDirectory() as folder:
        num_rows = write(Path(folder), args.files, args.groups, args.rows)
        print("rows read for a row that is used\nreaders   ours   split_dataset_by_node   after reshard()")
        for processes, workers in ((1, 0), (2, 2), (8, 12), (32, 12)):
            figures = [ours(Path(folder), processes, workers)]
            figures += [theirs(Path(folder), processes, workers, reshard) for reshard in (False, True)]
            print(f"{f'{processes}x{workers}':<8} {figures[0]:>5} {figures[1]:>23} {figures[2]:>17}", flush=True)
        resumed(Path(folder), num_rows)


if __name__ == "__main__":
    main()
