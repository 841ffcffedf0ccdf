"""The first picture of the README: python docs/first_picture.py

It is of the model that comes with the package, and of a part of the embedded photographs that no training crop of the
demo dataset touches.
"""

from pathlib import Path

import torch
from PIL import Image

from energy_transformer import demo_checkpoint
from energy_transformer.data import normalize, resize_to_tensor
from energy_transformer.data.demo import photograph
from energy_transformer.inspection import load_for_reconstruction, overview_figure, reconstruct

CUP = (180, 220, 280, 320)  # the handle of the cup: left, top, right and bottom
SIZE = 64  # pixels that the model sees
MASK_RATIO = 0.3
EARLY = (0, 1, 2, 4)  # steps, which do most; and the last


def main(output: Path = Path(__file__).parent / "images" / "first_picture.png") -> None:
    model, processor = load_for_reconstruction(str(demo_checkpoint()), [SIZE])
    photo = Image.fromarray(photograph("coffee.png")).crop(CUP)
    pixel_values = normalize(resize_to_tensor(photo, processor)[None].to(model.device), processor)
    rows, columns = model.base_model.embeddings.grid_of(SIZE, SIZE)
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1)) < MASK_RATIO
    mask[3 * rows // 8 : 5 * rows // 8, 3 * columns // 8 : 5 * columns // 8] = True
    result = reconstruct(model, processor, pixel_values, mask[None].to(model.device))
    steps = [step for step in EARLY if step < result.num_steps] + [result.num_steps]
    overview_figure(result, steps=steps).savefig(output, dpi=110)


if __name__ == "__main__":
    main()
