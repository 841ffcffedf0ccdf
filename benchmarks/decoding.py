"""How fast images are decoded as they are read, beside plain Pillow with `draft`, in images a second of one core.

    python benchmarks/decoding.py

The photographs are those of scikit-image, enlarged and cropped to usual sizes, as JPEG of quality 92. Each way is
timed in turns, and the median of its turns is told.
"""

import argparse
import io
import statistics
import time

import numpy as np
import torch
from PIL import Image

from energy_transformer.data.decoding import ImageDecoder
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor

SIZES = ((500, 375), (1024, 768), (4000, 3000))  # of ImageNet, of a web page, of a telephone
CROP = (0.08, 1.0)


def jpeg(size: tuple[int, int]) -> dict:
    image = Image.fromarray(photograph("coffee.png")).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return {"bytes": file.getvalue(), "path": None}


def plain_pillow(source: dict, side: int) -> torch.Tensor:
    """The middle of the image, as a user of Pillow would write it."""
    image = Image.open(io.BytesIO(source["bytes"]))
    image.draft("RGB", (side, side))
    image = image.convert("RGB")
    scale = side / min(image.size)
    size = max(side, round(image.width * scale)), max(side, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = np.array(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def rate(decode, seconds: float) -> float:
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        decode(count)
        count += 1
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224, help="Side of the square to which images are resized.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Length of a turn.")
    parser.add_argument("--turns", type=int, default=5, help="Turns of each way.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    processor = build_image_processor((args.side, args.side))
    exact, middle = ImageDecoder(processor), ImageDecoder(processor, draft=True)
    cropped = ImageDecoder(processor, crop=CROP, draft=True)
    print(f"{'size':>10} {'bytes':>8}  plain Pillow  read, middle  read, random crop  evaluation (exact)")
    for size in SIZES:
        source = jpeg(size)
        ways = (
            lambda number, source=source: plain_pillow(source, args.side),
            lambda number, source=source: middle(source, ""),
            lambda number, source=source: cropped(source, "", (number,)),
            lambda number, source=source: exact(source, ""),
        )
        turns = [[rate(way, args.seconds) for way in ways] for _ in range(args.turns)]
        plain, *ours = (statistics.median(column) for column in zip(*turns, strict=True))
        name = f"{size[0]}x{size[1]}"
        print(
            f"{name:>10} {len(source['bytes']):>8}  {plain:12.0f}  {ours[0]:12.0f}  {ours[1]:17.0f}  {ours[2]:18.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
