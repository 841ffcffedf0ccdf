"""Look inside a model: pictures of its descent, its energies, its attention and its memories.

Images are files, or held-out crops of the embedded photographs where none are given. Pictures of several images show
the first eight or four of them, pictures of one image show the one with the most contrast, curves are of all images.
"""

from pathlib import Path

from ..utils.command_line import OneLineErrors
from ..utils.errors import UserError
from ..weights import demo_checkpoint

_DATASET = 512  # training crops that are searched for what activates the memories


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "checkpoint", nargs="?", default=str(demo_checkpoint()),
        help="Folder or Hub repository of a model; the demo's when not given.",
    )  # fmt: skip
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="Image files; embedded photographs when not given.")
    parser.add_argument("--output_dir", type=Path, default=Path("inspection"), help="Folder to write (%(default)s).")
    parser.add_argument("--num_images", type=int, default=16, help="The number of embedded crops (%(default)s).")
    parser.add_argument("--image_size", type=int, nargs="+", help="Another size in pixels: one number or two.")
    parser.add_argument("--mask_ratio", type=float, help="Share of the patches to hide; the model's when not given.")
    parser.add_argument("--num_steps", type=int, help="Descent steps of each block; the model's when not given.")
    parser.add_argument(
        "--patch",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="Draw the attention of this patch (one in the middle).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Decides which crops and patches (default: 0).")
    parser.add_argument("--device", help="Such as cpu or cuda; a GPU where there is one when not given.")
    return parser


def check_arguments(args) -> None:
    """Take a file in the place of the checkpoint for an image. Raises [`UserError`] for a value that is not allowed."""
    if Path(args.checkpoint).is_file():
        args.images, args.checkpoint = [args.checkpoint, *args.images], str(demo_checkpoint())
    if args.num_images < 1:
        raise UserError(f"num_images must be at least 1, got {args.num_images}")
    if args.num_steps is not None and args.num_steps < 0:
        raise UserError(f"num_steps must not be negative, got {args.num_steps}")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"seed must lie in [0, 2**32), got {args.seed}")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"output_dir must be a folder, got the file {args.output_dir}")


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    check_arguments(args)

    from ..data import normalize
    from ..inspection.all_pictures import all_pictures
    from ..inspection.animation import Animation, has_ffmpeg
    from ..inspection.loading import demo_images, image_files, load_for_inspection, random_masks
    from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling

    model, processor = load_for_inspection(args.checkpoint, args.image_size, args.device)
    if args.images:
        images = dataset = image_files(args.images, processor)
    else:
        images = demo_images("validation", args.num_images, processor, args.seed)
        dataset = demo_images("train", _DATASET, processor, args.seed)
    pixel_values, dataset = (normalize(each.to(model.device), processor) for each in (images, dataset))
    masked = isinstance(model, EnergyTransformerForMaskedImageModeling)
    mask = random_masks(model, pixel_values, args.mask_ratio, args.seed) if masked else None
    patch = None if args.patch is None else tuple(args.patch)
    grid = model.base_model.embeddings.grid_of(*pixel_values.shape[2:])
    if patch and not all(0 <= place < size for place, size in zip(patch, grid, strict=True)):
        raise UserError(f"patch must be a row below {grid[0]} and a column below {grid[1]}, got {args.patch}")
    try:
        for name, picture in all_pictures(model, processor, pixel_values, mask, dataset, patch, args.num_steps):
            endings = [".png"]
            if isinstance(picture, Animation):
                endings = [".gif", ".mp4"] if has_ffmpeg() else [".gif"]
            for ending in endings:
                picture.save(args.output_dir / f"{name}{ending}")
                print(args.output_dir / f"{name}{ending}", flush=True)
    except OSError as error:
        raise UserError(f"output_dir {args.output_dir} cannot be written: {error.strerror}") from error
