"""What a Hub holds: users, repositories, commits and files."""

import fnmatch
import hashlib
import itertools
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property

LFS_PATTERNS = "*.arrow *.bin *.ckpt *.gz *.h5 *.msgpack *.npy *.npz *.onnx *.parquet *.pt *.pth *.safetensors *.zip"
LFS_SIZE = 10 * 2**20
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS.split())
_NAME = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


class HubError(Exception):
    """An error answer; `code` is what clients tell errors apart by (the header X-Error-Code)."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


def _git_hash(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit; of a large one, Git holds a pointer."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @cached_property
    def blob_id(self) -> str:
        """The id of what Git holds, as `git hash-object` computes it."""
        return _git_hash("blob", self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Discussion:
    num: int
    title: str
    author: str
    date: str
    is_pull_request: bool
    base: str | None = None
    status: str = "open"
    merge_commit: str | None = None
    events: list[dict] = field(default_factory=list)


@dataclass
class User:
    name: str
    token: str
    organizations: tuple[str, ...] = ()
    can_write: bool = True

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.organizations)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_large(path: str, size: int) -> bool:
    """Whether a file goes to large file storage; an empty one never does."""
    matches = any(fnmatch.fnmatch(path.rpartition("/")[2], pattern) for pattern in LFS_PATTERNS.split())
    return size > 0 and (matches or size > LFS_SIZE)


def directory_id(files: dict[str, File]) -> str:
    listing = "".join(f"{file.blob_id} {path}\n" for path, file in sorted(files.items()))
    return _git_hash("tree", listing.encode())


class Repository:
    """The commits and refs of a model, dataset or Space. A new one holds `.gitattributes` on the branch main."""

    def __init__(self, kind: str, repo_id: str, author: str, private: bool):
        self.kind, self.repo_id, self.private = kind, repo_id, private
        self.gated: str | bool = False
        self.granted: set[str] = set()
        self.created = now()
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.discussions: list[Discussion] = []
        attributes = {".gitattributes": File(GIT_ATTRIBUTES.encode(), lfs=False)}
        self.commit("refs/heads/main", None, attributes, "initial commit", "", author)

    @property
    def namespace(self) -> str:
        return self.repo_id.partition("/")[0]

    @property
    def prefix(self) -> str:
        """Of its addresses."""
        return "" if self.kind == "model" else f"{self.kind}s/"

    def ref(self, revision: str) -> str | None:
        """The full name of a branch, a tag or `refs/…`."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def find(self, revision: str) -> Commit:
        ref = self.ref(revision)
        oid = self.refs[ref] if ref else revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def commit(self, ref: str, parent: Commit | None, files, title: str, message: str, author: str) -> Commit:
        parent_id = parent.oid if parent else None
        number = len(self.commits)  # makes two equal changes two commits
        oid = _git_hash("commit", repr((number, parent_id, directory_id(files), title, author, self.created)).encode())
        self.commits[oid] = Commit(oid, parent_id, title, message, author, now(), files)
        self.refs[ref] = oid
        return self.commits[oid]

    def history(self, commit: Commit | None) -> list[Commit]:
        """That commit and its ancestors, the newest first."""
        commits = []
        while commit is not None:
            commits.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return commits

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit that gave the file or folder its content."""
        below = path + "/"

        def state(of: Commit):
            return {name: file.blob_id for name, file in of.files.items() if name == path or name.startswith(below)}

        history = self.history(commit)
        pairs = itertools.pairwise(history)
        return next((newer for newer, older in pairs if state(newer) != state(older)), history[-1])

    def open_discussion(self, title: str, author: str, pull_request_of: str | None = None) -> Discussion:
        num = len(self.discussions) + 1
        self.discussions.append(Discussion(num, title, author, now(), pull_request_of is not None, pull_request_of))
        return self.discussions[-1]

    def discussion(self, num: int) -> Discussion:
        if not 1 <= num <= len(self.discussions):
            raise HubError(404, "Discussion not found", "DiscussionNotFound")
        return self.discussions[num - 1]


class Hub:
    """All users, repositories and large files, and who may do what."""

    def __init__(self):
        self.users: dict[str, User] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}

    def create(self, kind: str, repo_id: str, user: User | None, private: bool = False) -> Repository:
        namespace, _, name = repo_id.partition("/")
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not user.can_write or namespace not in user.namespaces:
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        if not _NAME.fullmatch(name):
            raise HubError(400, f'Invalid repository name "{name}"')
        if (kind, repo_id) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo")
        self.repositories[kind, repo_id] = Repository(kind, repo_id, user.name, private)
        return self.repositories[kind, repo_id]

    def open(self, kind: str, repo_id: str, user: User | None, contents: bool = False) -> Repository:
        """The repository, if the user may know of it, and with `contents` if the user may read its files."""
        repository = self.repositories.get((kind, repo_id))
        ours = repository is not None and user is not None and repository.namespace in user.namespaces
        if repository is None or (repository.private and not ours):
            if user is None:  # strangers are not told which private repositories exist
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        granted = ours or (user is not None and user.name in repository.granted)
        if contents and repository.gated and not granted:
            who = "You must have access to it and be authenticated" if user is None else "Ask for access"
            raise HubError(403 if user else 401, f"Access to {kind} {repo_id} is restricted. {who}.", "GatedRepo")
        return repository

    def open_to_write(self, kind: str, repo_id: str, user: User | None) -> Repository:
        repository = self.open(kind, repo_id, user)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if repository.namespace not in user.namespaces:
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        if not user.can_write:
            raise HubError(403, "This token has read access only: the operation needs a token with write access")
        return repository
