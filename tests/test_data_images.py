"""What is made of an image file: the picture that a viewer shows, or one line that names it as broken."""

import io
import struct
import warnings
import zlib
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from damaged_images import MODES, damages, picture, whole_files, write
from PIL import Image, ImageOps

from energy_transformer.data import ImageTensors, load_image
from energy_transformer.data.decoding import ImageDecoder
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.utils.errors import UserError

PROCESSOR = build_image_processor((16, 16))
FILES = whole_files()


def load(data, channels=3, **options):
    return load_image({"bytes": data, "path": None}, channels, "of row 0", **options)


def difference(image, other):
    return np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int)).max()


# Damaged files


def outcome(decode, data):
    """ "whole" or "broken"; anything else that is raised goes on."""
    try:
        image = decode({"bytes": data, "path": "the/file"}, "", (0,))
    except UserError as error:
        assert str(error).startswith("cannot read the image the/file: ") and "\n" not in str(error)
        return "broken"
    assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    return "whole"


def try_damages(format, count):
    decoders = [ImageDecoder(PROCESSOR, 2**21), ImageDecoder(PROCESSOR, 2**21, (0.08, 1.0), draft=True)]
    counts = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        for data in FILES[format].values():
            for number, (_, damaged) in enumerate(damages(data, count)):
                counts[outcome(decoders[number % 2], damaged)] += 1
    return counts


@pytest.mark.parametrize("format", FILES)
def test_a_damaged_file_is_never_fatal(format):
    counts = try_damages(format, 28)
    assert counts.total() == 28 * len(FILES[format])


@pytest.mark.slow
@pytest.mark.parametrize("format", FILES)
def test_many_damaged_files_are_never_fatal(format, record_property):
    counts = try_damages(format, 700)
    record_property("whole", counts["whole"])
    record_property("broken", counts["broken"])
    print(f"{format}: {len(FILES[format])} modes, {counts.total()} files, {counts['broken']} broken")


HEADS = {
    "BUFR": b"BUFR\0\0\0\4",
    "CUR": b"\0\0\2\0\1\0",
    "DCX": b"\xb1\x68\xde\x3a",
    "FITS": b"SIMPLE  =" + b" " * 20 + b"T",
    "FLI": b"\0\0\0\0\x11\xaf\1\0\10\0\10\0\10\0\3\0",
    "FTEX": b"FTEX",
    "GBR": b"\0\0\0\x1c\0\0\0\2\0\0\0\10\0\0\0\10\0\0\0\4GIMP",
    "GRIB": b"GRIB\0\0\0\1",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "IPTC": b"\x1c\3\0\0",
    "MCIDAS": b"\0\0\0\0\0\0\0\4",
    "MIC": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "MPEG": b"\0\0\1\xb3\0\x80\x08",
    "PCD": bytes(2048) + b"PCD_",
    "PIXAR": b"\200\350\0\0",
    "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\10\0\0\0\10\0\10\0\3",
    "SUN": b"\x59\xa6\x6a\x95\0\0\0\10\0\0\0\10\0\0\0\30",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0",
    "XPM": b'/* XPM */\nstatic char *a[] = {\n"8 8 2 1",\n',
    "XVTHUMB": b"P7 332\n",
}


@pytest.mark.parametrize("format", HEADS)
@pytest.mark.filterwarnings("ignore")
def test_garbage_behind_the_head_of_a_format_that_is_only_read(format):
    decode, generator = ImageDecoder(PROCESSOR, 10**6), np.random.default_rng(0)
    for number in range(30):
        tail = generator.integers(0, 4, 3000, dtype=np.uint8).tobytes() if number % 3 else generator.bytes(3000)
        outcome(decode, HEADS[format] + tail)


def test_a_broken_avif_is_passed_over_and_named():
    """Pillow raises RuntimeError for it."""
    if "AVIF" not in FILES:
        pytest.skip("this Pillow does not read AVIF")
    rows = [{"bytes": FILES["AVIF"]["RGB"], "path": f"{number}.avif"} for number in range(4)]
    rows[2]["bytes"] = rows[2]["bytes"].replace(b"iloc", b"iloX", 1)
    split = datasets.Dataset.from_dict({"image": rows}, datasets.Features({"image": datasets.Image()}))
    images = ImageTensors(split, "image", PROCESSOR, max_cached_bytes=0, check=True)
    count, (reason,) = images.broken_images()
    assert count == 1 and reason.startswith("cannot read the image 2.avif: ")


# Bombs


def bomb(side):
    """A small PNG of side² black pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + side * 3)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_not_decoded():
    data = bomb(13000)
    assert len(data) < 600_000
    with pytest.raises(UserError, match=r"cannot read the image of row 0: its 13000x13000 pixels are more than max_"):
        load(data)


@pytest.mark.parametrize("path", ["small.png", None])
def test_the_limit_of_pixels_counts_to_the_pixel(path):
    data = write(picture(20), "PNG")
    assert load_image({"bytes": data, "path": path}, 3, "x", max_image_pixels=400).size == (20, 20)
    with pytest.raises(UserError, match=f"image {path or 'x'}: its 20x20 pixels are more than max_image_pixels 399"):
        load_image({"bytes": data, "path": path}, 3, "x", max_image_pixels=399)


def test_an_icon_that_holds_more_than_it_tells():
    """The directory of the file says 16×16, the PNG inside is larger."""
    data = bomb(300)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 24, len(data), 22) + data
    with pytest.raises(UserError, match="cannot read the image of row 0"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(icon, max_image_pixels=1000)


def test_a_split_with_a_bomb(tmp_path):
    rows = [{"bytes": write(picture(side), "PNG"), "path": f"{side}.png"} for side in (20, 40, 30)]
    split = datasets.Dataset.from_dict({"image": rows}, datasets.Features({"image": datasets.Image()}))
    images = ImageTensors(split, "image", PROCESSOR, max_cached_bytes=0, check=True, max_image_pixels=900)
    assert len(images) == 2
    assert images.broken_images() == (
        1,
        ["cannot read the image 40.png: its 40x40 pixels are more than max_image_pixels 900"],
    )


def test_postscript_is_not_run():
    with pytest.raises(UserError, match="it is PostScript, a program, which is not run"):
        load(write(picture(), "EPS"))


# What a viewer shows


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_that_of_exif(format, orientation):
    image = picture().crop((0, 0, 24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = write(image, format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((24, 16) if orientation < 5 else (16, 24))
    assert difference(load(data), expected) == 0
    drafted = ImageDecoder(build_image_processor((4, 4)), draft=True)({"bytes": data}, "")
    exact = ImageDecoder(build_image_processor((4, 4)))({"bytes": data}, "")
    assert difference(drafted, exact) <= 3 < 10 < difference(drafted.flip(-1), exact)


def test_damaged_exif_does_not_hide_the_picture():
    data = write(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert difference(load(data), Image.open(io.BytesIO(data))) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB key", "L key"])
def test_transparent_parts_are_white(mode, channels):
    image = picture().convert("RGBA")
    alpha = np.full((24, 24), 255, np.uint8)
    alpha[:8] = 0
    image.putalpha(Image.fromarray(alpha))
    options = {}
    if "key" in mode:
        image, options = Image.new(mode.split()[0], (24, 24)), {"transparency": (0, 0, 0) if mode[0] == "R" else 0}
        image.paste(Image.new(image.mode, (24, 16), 1 if mode[0] == "L" else (1, 1, 1)), (0, 8))
    elif mode == "P":
        image = image.quantize(16)
    elif mode == "LA":
        image = image.convert("LA")
    pixels = np.asarray(load(write(image, "PNG", **options), channels))
    assert (pixels[:8] == 255).all() and (pixels[8:] < 255).any()


def test_half_transparent_is_half_white():
    data = write(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert abs(int(np.asarray(load(data))[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bits_of_gray_keep_their_brightness(format):
    gray = np.arange(576, dtype=np.uint16).reshape(24, 24) * 113
    shown = np.asarray(load(write(Image.fromarray(gray), format)))
    assert np.abs(shown[..., 0] - gray / 257).max() <= 0.51 and (shown == shown[..., :1]).all()


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "its pixels are floating-point numbers"),
        (np.full((8, 8), 70000, np.int32), r"its pixels are not in the range of 16 bits, \[0, 65535\]"),
    ],
)
def test_pixels_without_a_known_white_are_refused(pixels, reason):
    with pytest.raises(UserError, match=f"cannot read the image of row 0: {reason}"):
        load(write(Image.fromarray(pixels), "TIFF"))


def test_cmyk():
    data = write(picture().convert("CMYK"), "JPEG", quality=98)
    assert difference(load(data), picture()) <= 60


def test_of_an_animation_the_first_picture():
    first, second = picture(), picture().transpose(Image.Transpose.ROTATE_180)
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = write(first, format, save_all=True, append_images=[second], **options)
        assert difference(load(data), Image.open(io.BytesIO(data)).convert("RGB")) == 0
        assert difference(load(data), first) < difference(load(data), second)


@pytest.mark.parametrize("format", sorted(FILES.keys() - {"EPS", "SPIDER"}))  # a program, and floating-point numbers
def test_every_format_is_read(format):
    for mode, data in FILES[format].items():
        if (
            mode == "F"
            or (mode == "I;16" and format in ("AVIF", "GIF", "WEBP", "ICNS", "SGI"))
            or format + mode == "ICNS1"
        ):
            continue
        image = load(data)
        gray = mode in ("L", "I;16", "1")
        expected = picture().convert("1" if mode == "1" else "L" if gray else "RGB").convert("RGB").resize(image.size)
        error = np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).mean()
        assert error < (20 if mode in ("P", "CMYK") or format == "GIF" else 6), (format, mode, error)


def test_modes_are_covered():
    assert {mode for modes in FILES.values() for mode in modes} == set(MODES)
    assert len(FILES) >= 20


# Crops and drafts


def test_a_crop_is_cut_before_it_is_resized():
    """A fine pattern survives in a crop of the image, and would not in one of the resized image."""
    stripes = np.zeros((400, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    data = write(Image.fromarray(stripes), "PNG")
    processor = build_image_processor((100, 100))
    cropped = ImageDecoder(processor, crop=(0.0417, 0.0417))({"bytes": data}, "", (0, 1))
    assert cropped.float().std() > 40
    assert ImageDecoder(processor)({"bytes": data}, "").float().std() < 5


def test_a_crop_depends_on_its_key_alone():
    source = {"bytes": write(Image.fromarray(photograph("coffee.png")), "PNG")}
    decode = ImageDecoder(PROCESSOR, crop=(0.08, 1.0))
    first = decode(source, "", (3, 1))
    assert torch.equal(first, decode(source, "", (3, 1))) and not torch.equal(first, decode(source, "", (3, 2)))


@pytest.mark.parametrize("crop", [None, (0.3, 1.0)])
def test_a_draft_is_the_same_picture(crop):
    large = Image.fromarray(photograph("coffee.png")).resize((900, 600), Image.Resampling.LANCZOS)
    source = {"bytes": write(large, "JPEG", quality=95)}
    processor = build_image_processor((64, 64))
    for number in range(4):
        exact, drafted = (ImageDecoder(processor, crop=crop, draft=draft)(source, "", (number,)) for draft in (0, 1))
        assert (exact.float() - drafted.float()).abs().mean() < 5
