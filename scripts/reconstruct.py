"""Hide patches of an image and let a trained model fill them in: scripts/reconstruct.py CHECKPOINT IMAGE"""

from pathlib import Path

from energy_transformer.utils.command_line import OneLineErrors, run_script
from energy_transformer.utils.errors import UserError


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", help="Folder or Hub repository of a masked-image model, such as outputs/demo.")
    parser.add_argument("image", help="Image file of any size; it is resized and cropped to the size of the model.")
    parser.add_argument("--output", type=Path, help="Picture to write; IMAGE-descent.png when not given.")
    parser.add_argument("--image_size", type=int, nargs="+", help="Another size in pixels: one number or two.")
    parser.add_argument("--mask_ratio", type=float, help="Share of the patches to hide; the model's when not given.")
    parser.add_argument("--num_steps", type=int, help="Descent steps of each block; the model's when not given.")
    parser.add_argument("--seed", type=int, default=0, help="Decides which patches are hidden (default: 0).")
    parser.add_argument(
        "--leak_statistics",
        action="store_true",
        help="For a model with norm_pix_loss: take mean and contrast of the hidden patches from the original, "
        "not from the visible patches. A part of the answer; picture and output say so.",
    )
    parser.add_argument("--device", help="Such as cpu or cuda; a GPU where there is one when not given.")
    return parser


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    output = args.output or Path(f"{Path(args.image).stem}-descent.png")
    if output.suffix.lower() != ".png":
        raise UserError(f"output must end in .png, got {output}")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"seed must lie in [0, 2**32), got {args.seed}")
    if args.num_steps is not None and args.num_steps < 0:
        raise UserError(f"num_steps must not be negative, got {args.num_steps}")

    from energy_transformer.inspection import descent_figure, load_for_reconstruction, prepare_image, reconstruct
    from energy_transformer.metrics import masked_squared_error

    model, processor = load_for_reconstruction(args.checkpoint, args.image_size, args.device)
    pixel_values, mask = prepare_image(args.image, model, processor, args.mask_ratio, args.seed)
    if args.leak_statistics and not model.config.norm_pix_loss:
        raise UserError(f"leak_statistics is for models with norm_pix_loss, and {args.checkpoint} has none")
    result = reconstruct(model, processor, pixel_values, mask, args.num_steps, args.leak_statistics)
    patch_size = model.config.patch_height_width
    try:
        descent_figure(result).save(output)
    except OSError as error:
        raise UserError(f"output {output} cannot be written: {error.strerror}") from error
    error = masked_squared_error(result.prediction, result.images, mask, patch_size).item()
    energies = result.energies[0].tolist()
    print(f"picture: {output}")
    print(f"hidden:  {int(mask.sum())} of {mask.numel()} patches, mean squared error {error:.5f} in units of [0, 1]")
    if result.note:
        print(f"note:    {result.note}")
    print(f"energy:  {energies[0]:.6g} at the start, {energies[-1]:.6g} after {len(energies) - 1} steps")


if __name__ == "__main__":
    run_script(main)
