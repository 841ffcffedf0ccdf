"""Pushing a run to the Hub while it trains, and going on with one from there.

A push never ends a run: it works on links to and copies of the saved files, in the background and one at a time; one
that fails is made up for by the next, at the latest by that of the finished run.
"""

import logging
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..hub import files_to_push, pull, push_files
from ..hub.contents import LAST_CHECKPOINT
from ..hub.failures import HUB_ERRORS, explain, require_token
from ..hub.loading import split_revision
from ..hub.pushing import create_repo
from ..utils.errors import UserError
from .arguments import CommonArguments

logger = logging.getLogger(__name__)


def take_token(args: CommonArguments) -> None:
    """Move `hub_token` to the environment of this process, where all libraries look for it and nothing records it."""
    if args.hub_token:
        require_token(args.hub_token)
        os.environ["HF_TOKEN"] = args.hub_token
        args.hub_token = None
        logger.warning(
            "hub_token can be read in the list of processes: log in with `hf auth login` instead, or set HF_TOKEN"
        )


def pull_state(name: str) -> Path:
    """The state that a run left in `last-checkpoint/` of a repository, `USER/REPO` or `USER/REPO@REVISION`.

    Raises:
        UserError: when there is no such folder nor repository, it cannot be reached, or it holds no state.
    """
    repo_id, revision = split_revision(name)
    if "/" not in repo_id:
        raise UserError(f"{name} is not a saved state (a folder checkpoint-STEP), nor a repository USER/REPO")
    try:
        validate_repo_id(repo_id)
        snapshot = pull(repo_id, revision, allow_patterns=[f"{LAST_CHECKPOINT}/*"])
    except HFValidationError as error:
        raise UserError(f"{name} is not a saved state (a folder checkpoint-STEP)") from error
    except UserError as error:
        raise UserError(f"there is no folder {name}, and {error}") from error
    folder = snapshot / LAST_CHECKPOINT
    if not folder.is_dir():
        raise UserError(
            f"resume_from_checkpoint: {name} holds no {LAST_CHECKPOINT}, which hub_strategy checkpoint pushes"
        )
    return folder


class Publisher:
    """Pushes the output folder of a run; made and used by the main process alone.

    Making one makes the repository, so that a wrong token or name ends a run before it has begun.
    """

    def __init__(self, args: CommonArguments):
        self.folder = Path(args.output_dir)
        self.with_state = args.hub_strategy == "checkpoint"
        self.during_training = args.hub_strategy != "end"
        self.private = args.hub_private_repo or None
        name = args.hub_model_id or self.folder.resolve().name
        require_token(None)
        try:
            self.repo_id = create_repo(HfApi(), name, self.private)
        except HUB_ERRORS as error:
            raise UserError(f"push_to_hub: cannot push to {name!r}: {explain(error, name)}") from error
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="push_to_hub")
        self._running: Future | None = None

    def push(self, message: str, state: Path | None) -> None:
        """Begin to push what stands in the folder now, with `state` if the strategy says so; returns at once.

        Does nothing while the push before is still under way: the next one brings all that is new.
        """
        if self._running is None or self._running.done():
            try:
                self._running = self._begin(message, state)
            except (UserError, OSError) as error:
                logger.warning("push_to_hub: %s; the run goes on", error)

    def finish(self, state: Path | None) -> str:
        """Push the finished run and wait for it; returns the address of the commit.

        Raises:
            UserError: when it cannot be pushed; it says where the model is safe.
        """
        try:
            return self._begin("End of training", state).result()
        except HUB_ERRORS as error:
            raise UserError(
                f"the run is complete and safe in {self.folder}, but not on the Hub: {error} "
                f"(later: energy-transformer push {self.folder} {self.repo_id})"
            ) from error
        finally:
            self._pool.shutdown()

    def _begin(self, message: str, state: Path | None) -> Future:
        found = files_to_push(self.folder, state if self.with_state else None)
        links = tempfile.TemporaryDirectory(prefix=".pushing-", dir=self.folder)
        files = {}
        for name, path in found.items():
            files[name] = Path(links.name) / name
            files[name].parent.mkdir(parents=True, exist_ok=True)
            _keep(path, files[name])
        return self._pool.submit(self._push, links, files, message)

    def _push(self, links: tempfile.TemporaryDirectory, files: dict[str, Path], message: str) -> str:
        with links:
            try:
                return push_files(files, self.repo_id, private=self.private, commit_message=message)
            except UserError as error:
                logger.warning("%s; the run goes on, and its next push brings what is missing", error)
                raise


def _keep(path: Path, target: Path) -> None:
    """A second name for weights and states, which are replaced but never changed; a copy of anything else."""
    if path.suffix == ".safetensors" or LAST_CHECKPOINT in target.parts:
        try:
            os.link(path, target)
            return
        except OSError:  # a file system without links
            pass
    shutil.copy2(path, target, follow_symlinks=False)
