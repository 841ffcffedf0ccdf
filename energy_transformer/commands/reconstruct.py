"""Fill in what is hidden in an image, and show the descent that leads there.

With --mask, what is white in a picture of any size is filled in, in the whole photograph; all other pixels stay as they
are, bit for bit. The model hides whole patches: one that the mask touches is hidden from it entirely, but only the
pixels under the mask change. Without --mask, the image is resized and cropped to the size of the model, and patches are
hidden at random.
"""

from pathlib import Path

from ..utils.command_line import OneLineErrors
from ..utils.errors import UserError
from ..weights import demo_checkpoint

_OF_A_MASK = {"whole": False, "scale": None, "overlap": None}
_OF_NO_MASK = {"image_size": None, "mask_ratio": None, "leak_statistics": False}
_OVERLAP = 0.5


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default=str(demo_checkpoint()),
        help="Folder or Hub repository of a masked-image model; the one that comes with the package when not given.",
    )
    parser.add_argument("image", help="Image file of any size.")
    parser.add_argument("--output", type=Path, help="Filled image to write, a PNG; IMAGE-filled.png when not given.")
    parser.add_argument("--figure", type=Path, help="Picture of the descent; OUTPUT-descent.png when not given.")
    parser.add_argument("--num_steps", type=int, help="Descent steps of each block; the model's when not given.")
    parser.add_argument("--device", help="Such as cpu or cuda; a GPU where there is one when not given.")
    mask = parser.add_argument_group("a mask of your own")
    mask.add_argument("--mask", help="Picture of what to fill in: white is hidden, black and transparent are kept.")
    mask.add_argument(
        "--scale",
        type=float,
        help="Shrink the photograph to this share, in (0, 1]; found from the size of the holes when not given.",
    )
    mask.add_argument(
        "--overlap", type=float, help=f"Share of a tile that the next one covers too, in [0, 1) (default: {_OVERLAP})."
    )
    mask.add_argument("--whole", action="store_true", help="Run the model once at the size of the image, not in tiles.")
    drawn = parser.add_argument_group("patches hidden at random, without --mask")
    drawn.add_argument("--image_size", type=int, nargs="+", help="Another size in pixels: one number or two.")
    drawn.add_argument("--mask_ratio", type=float, help="Share of the patches to hide; the model's when not given.")
    drawn.add_argument("--seed", type=int, default=0, help="Decides which patches are hidden (default: 0).")
    drawn.add_argument(
        "--leak_statistics",
        action="store_true",
        help="For a model with norm_pix_loss: take mean and contrast of the hidden patches from the original, "
        "not from the visible patches. A part of the answer; picture and output say so.",
    )
    return parser


def check_arguments(args) -> None:
    """Fill in the names of what is written. Raises [`UserError`] for what is not allowed."""
    args.output = args.output or Path(f"{Path(args.image).stem}-filled.png")
    args.figure = args.figure or args.output.with_name(f"{args.output.stem}-descent.png")
    for name in ("output", "figure"):
        path = getattr(args, name)
        if path.suffix.lower() != ".png":
            raise UserError(f"{name} must end in .png, got {path}")
    if args.output.absolute() == args.figure.absolute():
        raise UserError(f"output and figure must be two files, got {args.output} for both")
    if args.output.absolute() == Path(args.image).absolute():
        raise UserError(f"output {args.output} is the image itself, which would be lost")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"seed must lie in [0, 2**32), got {args.seed}")
    if args.num_steps is not None and args.num_steps < 0:
        raise UserError(f"num_steps must not be negative, got {args.num_steps}")
    for name, default in (_OF_A_MASK if args.mask is None else _OF_NO_MASK).items():
        if getattr(args, name) != default:
            raise UserError(f"{name} {'needs mask' if args.mask is None else 'does not go with mask'}")


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    check_arguments(args)

    from ..inspection import load_for_reconstruction

    model, processor = load_for_reconstruction(args.checkpoint, args.image_size, args.device)
    if args.leak_statistics and not model.config.norm_pix_loss:
        raise UserError(f"leak_statistics is for models with norm_pix_loss, and {args.checkpoint} has none")
    image, figure, lines = (_random_patches if args.mask is None else _own_mask)(args, model, processor)
    _write(args, image, figure)
    print(f"filled:  {args.output}\npicture: {args.figure}", *lines, sep="\n")


def _own_mask(args, model, processor):
    """The filled photograph, the picture, and what to print."""
    import numpy as np

    from ..data import load_image
    from ..inspection.completion import complete, completion_figure, load_mask

    photograph = np.asarray(load_image({"path": args.image}, model.config.num_channels, args.image))
    mask = load_mask(args.mask, photograph.shape[:2])
    overlap = _OVERLAP if args.overlap is None else args.overlap
    pixels = photograph[..., None] if photograph.ndim == 2 else photograph
    result = complete(model, processor, pixels, mask, args.whole, args.scale, overlap, args.num_steps)
    (height, width), size = mask.shape, "x".join(map(str, result.hidden.shape))
    lines = [
        f"mask:    {mask.mean():.1%} of the pixels; the model worked on {size} in place of {height}x{width}",
        f"error:   {result.error:.5f} in units of [0, 1] against the photograph under the mask, that of the mean color "
        f"is {result.mean_color_error:.5f}",
    ]
    return result.image, completion_figure(result), lines


def _random_patches(args, model, processor):
    """The filled image, the picture, and what to print."""
    from ..inspection import descent_figure, prepare_image, reconstruct

    pixel_values, mask = prepare_image(args.image, model, processor, args.mask_ratio, args.seed)
    result = reconstruct(model, processor, pixel_values, mask, args.num_steps, args.leak_statistics)
    image = result.filled_in(result.prediction)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    error, energies = result.errors(result.prediction).item(), result.energies[0].tolist()
    lines = [f"hidden:  {int(mask.sum())} of {mask.numel()} patches, mean squared error {error:.5f} in units of [0, 1]"]
    lines += [f"note:    {result.note}"] if result.note else []
    lines += [f"energy:  {energies[0]:.6g} at the start, {energies[-1]:.6g} after {len(energies) - 1} steps"]
    return image, descent_figure(result), lines


def _write(args, image, figure) -> None:
    """The filled image, uint8 (H, W, C), and the picture."""
    from PIL import Image

    from ..utils.files import atomic_path

    path = args.output
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(temporary, "PNG")
        path = args.figure
        figure.save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
