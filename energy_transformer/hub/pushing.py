"""A folder to a repository of the Hub in one commit, verified, and whole or not there at all."""

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.hf_api import RepoFile

from ..utils.errors import UserError
from . import failures
from .cards import load_card
from .contents import LAST_CHECKPOINT, files_to_push
from .failures import HUB_ERRORS, explain, is_transient, require_repo_id, require_token, with_retries
from .integrity import is_the_same

logger = logging.getLogger(__name__)

CARD = "README.md"
MESSAGE = "Upload model"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
    commit_message: str = MESSAGE,
    token: str | None = None,
    state: str | Path | None = None,
) -> str:
    """[`push_files`] of [`files_to_push`]: model, code, processor, card, pictures and results of a finished run."""
    return push_files(
        files_to_push(folder, state),
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        tags=tags,
        commit_message=commit_message,
        token=token,
    )


def push_files(
    files: dict[str, Path],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
    commit_message: str = MESSAGE,
    token: str | None = None,
    repo_type: str = "model",
) -> str:
    """Commit files to a repository of the Hub, which is made if there is none, and verify that it holds them.

    All files go in one commit. When the Hub fails or its answer is lost, the branch is looked at before anything is
    sent again, so that nothing is committed twice; the commit is tried five times. Files of an older
    `last-checkpoint/` that are not among `files` are deleted in the same commit.

    Args:
        files: local files by their names in the repository.
        private: make a new repository private; the default of the account when None.
        revision: a branch, made if there is none; `main` when None.
        create_pr: open a pull request in place of a commit to the branch.
        tags: added to the metadata of the card, as by transformers' `push_to_hub`.
        token: that of the environment or the login when None.
        repo_type: `"model"`, or `"space"` for a Space with Gradio.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UserError: when the name is not allowed, the token is missing, unknown or without the right, or the repository
            does not hold the files in the end.
    """
    require_token(token)
    api = HfApi(token=token)
    try:
        repo_id = create_repo(api, repo_id, private, repo_type)
        with tempfile.TemporaryDirectory() as temporary:
            if tags and CARD in files:
                files = {**files, CARD: _tagged(files[CARD], tags, Path(temporary) / CARD)}
            push = _Push(api, repo_id, repo_type, files, revision, create_pr, commit_message)
            return push.run()
    except HUB_ERRORS as error:
        raise UserError(f"cannot push to {repo_id!r}: {explain(error, repo_id)}") from error


def create_repo(api: HfApi, repo_id: str, private: bool | None = None, repo_type: str = "model") -> str:
    """Make the repository unless it is there; returns its full name, `USER/REPO`.

    Raises:
        UserError: when the name is not allowed, or the repository is public and `private` was asked for.
    """
    require_repo_id(repo_id)
    kind = {"repo_type": repo_type}
    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    repo_id = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True, **kind, **sdk)).repo_id
    if private and not with_retries(lambda: api.repo_info(repo_id, **kind)).private:
        raise UserError(f"{repo_id} is there already and is public: change that in its settings, or push elsewhere")
    return repo_id


def _tagged(card_path: Path, tags: Sequence[str], target: Path) -> Path:
    card = load_card(card_path)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    card.save(target)
    return target


class _Push:
    """One commit or pull request, however many requests it takes."""

    def __init__(self, api, repo_id, repo_type, files, revision, create_pr, message):
        self.api, self.files = api, files
        self.repo = {"repo_id": repo_id, "repo_type": repo_type}
        self.revision, self.create_pr, self.message = revision, create_pr, message

    def run(self) -> str:
        if self.revision and not self.create_pr and not self.revision.startswith("refs/pr/"):
            with_retries(lambda: self.api.create_branch(**self.repo, branch=self.revision, exist_ok=True))
        for wait in (*failures.WAITS, None):
            try:
                commit = self._commit()
            except HUB_ERRORS as error:
                if not is_transient(error):
                    raise
                landed = with_retries(self._look)
                if landed is not None:
                    return landed
                if wait is None:
                    raise
                logger.warning("push to %s: %s; trying again in %d s", self.repo["repo_id"], explain(error), wait)
                time.sleep(wait)
            else:
                self._verify(commit.oid)
                return commit.pr_url or commit.commit_url
        raise AssertionError("the last attempt returns or raises")

    def _commit(self):
        head = self.api.repo_info(**self.repo, revision=None if self.create_pr else self.revision).sha
        return self.api.create_commit(
            **self.repo,
            operations=[
                *(CommitOperationDelete(name) for name in self._stale(head)),
                *(CommitOperationAdd(name, str(path)) for name, path in self.files.items()),
            ],
            commit_message=self.message,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=head,  # so that an attempt which lands late cannot land twice
        )

    @property
    def _page(self) -> str:
        prefix = constants.REPO_TYPES_URL_PREFIXES.get(self.repo["repo_type"], "")
        return f"{self.api.endpoint}/{prefix}{self.repo['repo_id']}"

    def _stale(self, head: str) -> list[str]:
        """Files of an older state, which a smaller number of processes would leave behind."""
        prefix = f"{LAST_CHECKPOINT}/"
        if not any(name.startswith(prefix) for name in self.files):
            return []
        return [name for name in self._tree(head) if name.startswith(prefix) and name not in self.files]

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(**self.repo, recursive=True, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _missing(self, revision: str) -> list[str]:
        tree = self._tree(revision)
        return [name for name, path in self.files.items() if name not in tree or not is_the_same(path, tree[name])]

    def _look(self) -> str | None:
        """The address of what an attempt without an answer left, if it holds all files."""
        if not self.create_pr:
            head = self.api.repo_info(**self.repo, revision=self.revision).sha
            return None if self._missing(head) else f"{self._page}/commit/{head}"
        for discussion in self.api.get_repo_discussions(
            **self.repo, discussion_type="pull_request", discussion_status="open"
        ):
            if discussion.title == self.message and not self._missing(discussion.git_reference):
                return discussion.url
        return None

    def _verify(self, revision: str) -> None:
        missing = with_retries(lambda: self._missing(revision))
        if missing:
            raise UserError(f"the repository does not hold what was sent: {', '.join(missing)}")
