"""Push a finished output_dir, or the app as a Space, to the Hugging Face Hub."""

import argparse
from pathlib import Path

from ..utils.command_line import OneLineErrors
from ..utils.errors import UserError


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "output_dir", type=Path, help="Folder of a finished training, of a converted checkpoint, or of a Space."
    )
    parser.add_argument("repo_id", metavar="USER/REPO", help="Repository of the Hub; it is made if there is none.")
    parser.add_argument(
        "--repo_type", choices=("model", "space"), default="model",
        help="A model, or a Space: the folder `spaces` of a clone, with this package beside it (default: %(default)s).",
    )  # fmt: skip
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to commit to, made if there is none (default: main).")
    parser.add_argument("--create_pr", action="store_true", help="Open a pull request in place of a commit.")
    parser.add_argument("--tag", dest="tags", action="append", default=[], help="Tag for the card; may be repeated.")
    parser.add_argument("--commit_message", help='First line of the commit (default: "Upload" and the kind).')
    parser.add_argument(
        "--checkpoint", action="store_true", help="Push the newest checkpoint-STEP too, as last-checkpoint/."
    )
    parser.add_argument("--dry_run", action="store_true", help="List what would go, without the network.")
    parser.add_argument(
        "--token", help="Better not: others can see it in the list of processes. Use `hf auth login` or HF_TOKEN."
    )
    return parser


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    if args.create_pr and args.revision:
        raise UserError("create_pr opens a pull request against main: leave out revision")

    from ..hub import push_files
    from ..hub.contents import files_that_stay, space_files
    from ..hub.failures import require_repo_id

    require_repo_id(args.repo_id)
    if args.repo_type == "space":
        if args.checkpoint:
            raise UserError("checkpoint: a Space has no saved state, leave it out")
        files = space_files(args.output_dir)
    else:
        files = model_files(args)
    if args.dry_run:
        list_files(files, args.repo_id, files_that_stay(args.output_dir, files))
        return
    address = push_files(
        files,
        args.repo_id,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
        tags=args.tags,
        commit_message=args.commit_message or f"Upload {args.repo_type}",
        token=args.token,
        repo_type=args.repo_type,
    )
    print(f"pushed: {address}")


def model_files(args: argparse.Namespace) -> dict[str, Path]:
    """The files of a finished run; its card is written first where it goes to the Hub."""
    from ..hub import files_to_push
    from ..hub.cards import address_card
    from ..hub.failures import require_token
    from ..hub.finished import check_finished

    check_finished(args.output_dir)
    state = state_to_push(args.output_dir) if args.checkpoint else None
    if not args.dry_run:
        require_token(args.token)
        address_card(args.output_dir, args.repo_id)
    return files_to_push(args.output_dir, state)


def state_to_push(output_dir: Path) -> Path:
    from ..training.saved_states import newest_state

    state = newest_state(output_dir)
    if state is None:
        raise UserError(f"checkpoint: there is no saved state in {output_dir}")
    return state


def list_files(files: dict[str, Path], repo_id: str, staying: list[str]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    width = max(len(f"{size:,}") for size in sizes.values())
    for name, size in sizes.items():
        print(f"{size:>{width},}  {name}")
    if "README.md" not in sizes:
        print("README.md (the model card) would be written first")
    if staying:
        print(f"stays here: {', '.join(staying)}")
    print(f"{len(files)} files, {sum(sizes.values()):,} bytes would go to {repo_id}")
