"""The embedded dataset: 32×32 crops of the color photographs that come inside the scikit-image wheel.

The test crops of a photograph lie in a band of rows that no training crop touches. Bands, because the motorcycle is
a rectified stereo pair: the two views share their rows, so a split by columns would show the test scene in training.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.extras import install_command
from ..utils.files import atomic_path

CROP = 32
SCALES = (1, 2, 4)
TEST_BAND = (0.55, 0.80)
MAX_CROPS = {"train": 500, "test": 50}
MIN_STANDARD_DEVIATION = 6.0
PHOTOGRAPHS = {
    "astronaut": ["astronaut.png"],
    "chelsea": ["chelsea.png"],
    "coffee": ["coffee.png"],
    "hubble_deep_field": ["hubble_deep_field.jpg"],
    "immunohistochemistry": ["ihc.png"],
    "motorcycle": ["motorcycle_left.png", "motorcycle_right.png"],
    "retina": ["retina.jpg"],
    "rocket": ["rocket.jpg"],
}


def row_bands(height: int) -> dict[str, list[tuple[int, int]]]:
    """The rows (first, past the last) of each split in a photograph of that height; no row is in both splits."""
    top, bottom = (round(height * share) for share in TEST_BAND)
    return {"train": [(0, top), (bottom, height)], "test": [(top, bottom)]}


def crop_boxes(height: int, width: int, split: str, scale: int) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of `CROP * scale` pixels, half overlapping in training, else disjoint."""
    side = CROP * scale
    stride = side // 2 if split == "train" else side
    return [
        (left, top, left + side, top + side)
        for first, last in row_bands(height)[split]
        for top in range(first, last - side + 1, stride)
        for left in range(0, width - side + 1, stride)
    ]


def _crops(photograph: np.ndarray, split: str, scale: int) -> Iterator[np.ndarray]:
    image = Image.fromarray(photograph)
    for box in crop_boxes(image.height, image.width, split, scale):
        crop = np.asarray(image.crop(box).resize((CROP, CROP), Image.Resampling.BOX))
        if crop.std() >= MIN_STANDARD_DEVIATION:  # leaves out the retina's black border and the empty sky
            yield crop


def photograph(file_name: str) -> np.ndarray:
    """A photograph of the installed scikit-image as uint8 (H, W, 3)."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / file_name
    if not path.is_file():
        raise FileNotFoundError(f"scikit-image {skimage.__version__} does not carry the photograph {file_name}")
    return np.asarray(Image.open(path).convert("RGB"))


def _build_split(split: str) -> datasets.Dataset:
    generator = np.random.default_rng(0)
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, file_names in enumerate(PHOTOGRAPHS.values()):
        photographs = [photograph(name) for name in file_names]
        for scale in SCALES:
            crops = [crop for photograph in photographs for crop in _crops(photograph, split, scale)]
            chosen = generator.permutation(len(crops))[: MAX_CROPS[split]]
            images.extend(crops[index] for index in chosen)
            labels.extend([label] * len(chosen))
    order = generator.permutation(len(images))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(PHOTOGRAPHS))})
    rows = {"image": [Image.fromarray(images[i]) for i in order], "label": [labels[i] for i in order]}
    return datasets.Dataset.from_dict(rows, features=features)


def load_demo_dataset(cache_dir: str | Path | None = None) -> datasets.DatasetDict:
    """The demo dataset, splits `train` and `test`, columns `image` (32×32 RGB) and `label` (the photograph).

    Built on first use and cached in `cache_dir` (that of `datasets` when None). The same on every machine.

    Raises:
        UserError: when scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise UserError(f"the demo dataset needs scikit-image: {install_command('train')}") from error
    recipe = repr((CROP, SCALES, TEST_BAND, MAX_CROPS, MIN_STANDARD_DEVIATION, PHOTOGRAPHS, skimage.__version__))
    version = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "energy_transformer_demo" / version
    if not folder.exists():
        _build_into(folder)
    return datasets.DatasetDict.load_from_disk(str(folder))


def _build_into(folder: Path) -> None:
    """Write under a temporary name and move into place: a crash or a second process leaves no half dataset."""
    try:
        with atomic_path(folder) as temporary:
            built = datasets.DatasetDict({split: _build_split(split) for split in ("train", "test")})
            built.save_to_disk(str(temporary))
    except OSError:
        if not folder.exists():
            raise
