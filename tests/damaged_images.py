"""Files of every format that Pillow writes, and the ways in which files go bad."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from energy_transformer.data.demo import photograph

MODES = ("RGB", "RGBA", "L", "P", "CMYK", "I;16", "1", "F")


def write(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(size=24) -> Image.Image:
    return Image.fromarray(photograph("coffee.png")[100 : 100 + size, 200 : 200 + size])


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert("L").convert(mode) if mode == "F" else image.convert(mode)


def whole_files(size=24) -> dict[str, dict[str, bytes]]:
    """By format and mode, what Pillow can write and then read."""
    Image.init()
    files: dict[str, dict[str, bytes]] = {}
    for format in sorted(Image.SAVE.keys() & Image.OPEN.keys()):
        for mode in MODES:
            try:
                data = write(in_mode(picture(size), mode), format)
                Image.open(io.BytesIO(data)).load()
            except Exception:  # this format does not hold this mode
                continue
            files.setdefault(format, {})[mode] = data
    return files


def damages(data: bytes, count: int, seed=0) -> Iterator[tuple[str, bytes]]:
    """Copies of a file that are cut, overwritten in places, zeroed in a stretch, or lack or repeat a piece of it."""
    generator = np.random.default_rng((seed, len(data)))
    kinds = ("cut", "bit", "bytes", "head", "zeros", "removed", "repeated")
    for number in range(count):
        kind = kinds[number % len(kinds)]
        copy = bytearray(data)
        first = int(generator.integers(len(data)))
        length = int(generator.integers(1, 33))
        match kind:
            case "cut":
                del copy[first:]
            case "bit":
                copy[first] ^= 1 << int(generator.integers(8))
            case "bytes":
                copy[first : first + length] = generator.bytes(len(copy[first : first + length]))
            case "head":
                copy[first % min(64, len(copy))] = int(generator.integers(256))
            case "zeros":
                copy[first : first + length] = bytes(len(copy[first : first + length]))
            case "removed":
                del copy[first : first + length]
            case "repeated":
                copy[first:first] = copy[first : first + length]
        yield kind, bytes(copy)
