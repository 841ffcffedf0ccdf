"""Memory and speed of the streaming loader: python benchmarks/stream_images.py [--num_images 200000] [--num_workers 2]

Writes that many crops of the embedded photographs as JPEG to parquet shards in a temporary folder, and streams them
once through the loader of the training scripts. Prints a line of figures every tenth of the way: images a second, and
the resident memory of the process and its workers together (pages that they share are counted for each).
"""

import argparse
import io
import itertools
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
from PIL import Image

from energy_transformer.data import ImageStream, StreamLoader
from energy_transformer.data.demo import PHOTOGRAPHS, photograph
from energy_transformer.data.image_processing import build_image_processor

FEATURES = datasets.Features({"image": datasets.Image()})


def write_shards(folder: Path, num_images: int, num_shards: int, size: int) -> None:
    photographs = [photograph(name) for names in PHOTOGRAPHS.values() for name in names]
    generator = np.random.default_rng(0)
    for shard in range(num_shards):
        rows = []
        for _ in range(num_images // num_shards):
            pixels = photographs[generator.integers(len(photographs))]
            top, left = (generator.integers(side - size) for side in pixels.shape[:2])
            buffer = io.BytesIO()
            Image.fromarray(pixels[top : top + size, left : left + size]).save(buffer, "JPEG", quality=90)
            rows.append({"bytes": buffer.getvalue(), "path": None})
        datasets.Dataset.from_dict({"image": rows}, features=FEATURES).to_parquet(folder / f"{shard:05}.parquet")


def resident_mebibytes() -> float:
    process = psutil.Process()
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=200_000)
    parser.add_argument("--num_shards", type=int, default=40)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--shuffle_buffer_size", type=int, default=1000)
    parser.add_argument("--image_size", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), args.num_images, args.num_shards, args.image_size)
        files = sorted(map(str, Path(folder).glob("*.parquet")))
        print(f"{sum(Path(file).stat().st_size for file in files) / 2**20:.0f} MiB in {len(files)} shards", flush=True)
        stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        processor = build_image_processor((args.image_size, args.image_size))
        images = ImageStream(stream, "image", processor, args.batch_size, buffer_size=args.shuffle_buffer_size)
        num_batches = args.num_images // args.batch_size
        started, memory = time.perf_counter(), []
        print(f"before: {resident_mebibytes():.0f} MiB", flush=True)
        batches = itertools.islice(StreamLoader(images, args.num_workers), num_batches)
        for number, _ in enumerate(batches, start=1):
            if number % max(num_batches // 100, 1) == 0:
                memory.append(resident_mebibytes())
            if number % max(num_batches // 10, 1) == 0:
                seen, seconds = number * args.batch_size, time.perf_counter() - started
                print(f"{seen} images: {seen / seconds:.0f} images/s, {memory[-1]:.0f} MiB", flush=True)
        half = len(memory) // 2
        print(
            f"most memory in the first half: {max(memory[:half]):.0f} MiB, in the second: {max(memory[half:]):.0f} MiB"
        )


if __name__ == "__main__":
    main()
