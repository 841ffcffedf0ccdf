"""Push a finished output_dir to the Hugging Face Hub."""

from pathlib import Path

from ..utils.command_line import OneLineErrors
from ..utils.errors import UserError


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("output_dir", type=Path, help="Folder of a finished training or of a converted checkpoint.")
    parser.add_argument("repo_id", metavar="USER/REPO", help="Repository of the Hub; it is made if there is none.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to commit to, made if there is none (default: main).")
    parser.add_argument("--create_pr", action="store_true", help="Open a pull request in place of a commit.")
    parser.add_argument("--tag", dest="tags", action="append", default=[], help="Tag for the card; may be repeated.")
    parser.add_argument("--commit_message", default="Upload model", help="First line of the commit.")
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

    from ..hub import files_to_push, push_folder
    from ..hub.cards import address_card
    from ..hub.contents import files_that_stay
    from ..hub.failures import require_repo_id, require_token
    from ..hub.finished import check_finished

    require_repo_id(args.repo_id)
    check_finished(args.output_dir)
    state = state_to_push(args.output_dir) if args.checkpoint else None
    if args.dry_run:
        list_files(files_to_push(args.output_dir, state), args.repo_id, files_that_stay(args.output_dir))
        return
    require_token(args.token)
    address_card(args.output_dir, args.repo_id)
    address = push_folder(
        args.output_dir,
        args.repo_id,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
        tags=args.tags,
        commit_message=args.commit_message,
        token=args.token,
        state=state,
    )
    print(f"pushed: {address}")


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
