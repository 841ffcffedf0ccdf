"""Open an app in the browser: paint a mask on a picture and step through its descent.

Only this machine can reach it, unless --host names another address.
"""

from ..utils.command_line import OneLineErrors
from ..utils.errors import UserError
from ..weights import demo_checkpoint


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "checkpoint", nargs="?", default=str(demo_checkpoint()),
        help="Folder or Hub repository of a masked-image model; the demo's when not given.",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: %(default)s).")
    parser.add_argument("--port", type=int, default=7860, help="Port to listen on (default: %(default)s).")
    parser.add_argument("--device", help="Such as cpu or cuda; a GPU where there is one when not given.")
    return parser


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    if not 0 < args.port < 2**16:
        raise UserError(f"port must lie in [1, 65535], got {args.port}")

    from ..app.interface import MAX_UPLOAD, build
    from ..app.session import Explorer

    app = build(Explorer.of(args.checkpoint, args.device))
    try:
        app.launch(
            server_name=args.host, server_port=args.port, max_file_size=MAX_UPLOAD, footer_links=[], ssr_mode=False
        )
    except OSError as error:
        raise UserError(f"the app cannot listen on {args.host}, port {args.port}: {error}") from error
