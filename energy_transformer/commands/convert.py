"""Convert a checkpoint of another Energy Transformer implementation into one that `from_pretrained` loads.

Recognized from the file: bhoov/energy-transformer-jax (plaindict_ckpt.npz; flax msgpack files of the masked-image and
classification models), LumenPallidium/energy_transformer (state dicts), Lemon-cmd/energy-transformer-torch (.pth); and
of graphs, Lemon-cmd/energy-transformer-graph (flax msgpack) and
zhuergou/Energy-Transformer-for-Graph-Anomaly-Detection (.pth).
Widths, heads, memories, patches and image size are read from the shapes; an option is needed where they leave it open.
"""

from ..utils.command_line import OneLineErrors
from ..utils.errors import UserError


def parse_arguments(argv: list[str]) -> dict:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="The checkpoint file.")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="Folder for the converted checkpoint; must be empty.")
    parser.add_argument("--image_size", type=int, nargs="+", metavar="N", help="Pixels of a side, or height and width.")
    parser.add_argument("--patch_size", type=int, help="Pixels of a side of the square patches.")
    parser.add_argument("--num_channels", type=int, help="Channels of the images; 1 or 3 are found without it.")
    parser.add_argument(
        "--num_steps", type=int, help="Descent steps; the origin's default is 12, and 1 or 4 for graphs."
    )
    parser.add_argument("--step_size", type=float, help="Step size; by default 0.1, or as the origin has it.")
    parser.add_argument("--num_attention_heads", type=int, help="Checked against the file.")
    parser.add_argument(
        "--attention_beta", type=float, help="Fixed inverse temperature; 1/sqrt(head width) by default."
    )
    parser.add_argument("--hopfield_activation", help="'relu', 'gelu' or 'softmax', where the file leaves it open.")
    parser.add_argument("--dtype", help="float64, float32, bfloat16 or float16; that of the file by default.")
    arguments = vars(parser.parse_args(argv))
    size = arguments["image_size"]
    if size is not None:
        if len(size) > 2:
            raise UserError(f"image_size must be one number or height and width, got {size}")
        arguments["image_size"] = size[0] if len(size) == 1 else tuple(size)
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    from ..conversion import convert_checkpoint

    model = convert_checkpoint(**arguments)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} of {count:,} parameters: {arguments['output_dir']} (what it came from: README.md)")
