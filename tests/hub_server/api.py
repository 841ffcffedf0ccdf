"""The routes under /api: accounts, repositories, commits, refs, listings, pull requests."""

import json
from urllib.parse import parse_qs, quote, urlencode

from .cards import check_card, describe
from .files import read_commit
from .messages import Request, Response, Routes, answer_json
from .repositories import Commit, Discussion, File, HubError, Repository, directory_id, is_large

routes = Routes()
SPACE_SDKS = ("gradio", "docker", "static")


def _repo_id(request: Request, values: dict) -> str:
    namespace = values.get("organization") or (request.user.name if request.user else "")
    return f"{namespace}/{values['name']}"


def _page_url(server, repository: Repository) -> str:
    return f"{server.url}/{repository.prefix}{repository.repo_id}"


def _page(server, request: Request, items: list) -> Response:
    """A page of at most `server.page_size` items, and the address of the next."""
    start = int(request.query.get("cursor", ["0"])[0])
    stop = start + server.page_size
    response = answer_json(items[start:stop])
    if stop < len(items):
        query = urlencode({**request.query, "cursor": [stop]}, doseq=True)
        response.headers["Link"] = f'<{server.url}{request.path}?{query}>; rel="next"'
    return response


@routes("GET", "/api/whoami-v2")
def whoami(server, request: Request) -> Response:
    user = request.user
    if user is None:
        raise HubError(401, "Invalid username or password.")
    token = {"displayName": "test", "role": "write" if user.can_write else "read"}
    return answer_json(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name.title(),
            "orgs": [{"type": "org", "name": name} for name in user.organizations],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@routes("POST", "/api/validate-yaml")
def validate_yaml(server, request: Request) -> Response:
    errors, warnings = check_card(request.json()["content"])
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return answer_json(found, 400 if errors else 200)


@routes("POST", "/api/repos/create")
def create(server, request: Request) -> Response:
    asked = request.json()
    kind, repo_id = asked.get("type") or "model", _repo_id(request, asked)
    if kind not in ("model", "dataset", "space"):
        raise HubError(400, f"Repositories of the type {kind} are not kept here")
    if kind == "space" and asked.get("sdk") not in SPACE_SDKS:
        raise HubError(400, f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    try:
        repository = server.hub.create(kind, repo_id, request.user, private)
    except HubError as error:
        if error.status != 409:
            raise
        existing = server.hub.repositories[kind, repo_id]
        return answer_json({"error": error.message, "url": _page_url(server, existing)}, 409)
    return answer_json({"url": _page_url(server, repository), "name": repo_id, "id": repo_id})


@routes("DELETE", "/api/repos/delete")
def delete(server, request: Request) -> Response:
    asked = request.json()
    kind, repo_id = asked.get("type") or "model", _repo_id(request, asked)
    server.hub.open_to_write(kind, repo_id, request.user)
    del server.hub.repositories[kind, repo_id]
    return answer_json({})


@routes("PUT", "/api/{kinds}/{repo}/settings")
def settings(server, request: Request, kind: str, repo: str) -> Response:
    repository = server.hub.open_to_write(kind, repo, request.user)
    asked = request.json()
    if "visibility" in asked or "private" in asked:
        repository.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repository.gated = asked.get("gated", repository.gated)
    return answer_json({"private": repository.private, "gated": repository.gated})


@routes("GET", "/api/{kinds}/{repo}/auth-check(?P<write>/write)?")
def auth_check(server, request: Request, kind: str, repo: str, write: str) -> Response:
    if write:
        server.hub.open_to_write(kind, repo, request.user)
    else:
        server.hub.open(kind, repo, request.user, contents=True)
    return answer_json({})


@routes("POST", "/api/{kinds}/{repo}/preupload/{revision}")
def preupload(server, request: Request, kind: str, repo: str, revision: str) -> Response:
    """Which files go to large file storage, and the content that the repository has of each."""
    if request.flag("create_pr"):
        repository = server.hub.open(kind, repo, request.user)
    else:
        repository = server.hub.open_to_write(kind, repo, request.user)
    present = repository.find(revision).files
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if is_large(file["path"], file["size"]) else "regular",
            "shouldIgnore": False,
            "oid": present[file["path"]].etag if file["path"] in present else None,
        }
        for file in request.json()["files"]
    ]
    return answer_json({"files": files})


@routes("POST", "/api/{kinds}/{repo}/commit/{revision}")
def commit(server, request: Request, kind: str, repo: str, revision: str) -> Response:
    if request.flag("create_pr"):
        repository = server.hub.open(kind, repo, request.user)
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
    else:
        repository = server.hub.open_to_write(kind, repo, request.user)
    parent = repository.find(revision)
    header, files = read_commit(server, request.body, parent.files)
    ref = repository.ref(revision)
    expected = header.get("parentCommit")
    if expected not in (None, parent.oid):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    title, message, author = header["summary"], header.get("description", ""), request.user.name
    more = {}
    if request.flag("create_pr"):
        discussion = repository.open_discussion(title, author, pull_request_of=revision)
        ref = f"refs/pr/{discussion.num}"
        more["pullRequestUrl"] = f"{_page_url(server, repository)}/discussions/{discussion.num}"
    elif ref is None or ref.startswith("refs/tags/"):
        raise HubError(400, f"A commit needs a branch, got {revision}")
    new = repository.commit(ref, parent, files, title, message, author)
    url = f"{_page_url(server, repository)}/commit/{new.oid}"
    return answer_json({"success": True, "commitOid": new.oid, "commitUrl": url, "hookOutput": "", **more})


@routes("GET", "/api/{kinds}/{repo}/commits/{revision}")
def commits(server, request: Request, kind: str, repo: str, revision: str) -> Response:
    repository = server.hub.open(kind, repo, request.user)
    entries = [
        {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in repository.history(repository.find(revision))
    ]
    return _page(server, request, entries)


def _lfs(file: File, name: str) -> dict:
    if not file.lfs:
        return {}
    return {"lfs": {name: file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}}


def _last_commit(repository: Repository, commit: Commit, path: str) -> dict:
    last = repository.last_change(commit, path)
    return {"lastCommit": {"id": last.oid, "title": last.title, "date": last.date}}


def _file_entry(path: str, file: File) -> dict:
    return {"type": "file", "oid": file.blob_id, "size": len(file.content), "path": path, **_lfs(file, "oid")}


def _entries(files: dict[str, File], folder: str) -> list[dict]:
    """All files and folders below a folder, by path."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in files.items() if path.startswith(prefix)}
    entries = {path: _file_entry(path, file) for path, file in inside.items()}
    for path in inside:
        parts = path.removeprefix(prefix).split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            name = prefix + "/".join(parts[:depth])
            below = {path: file for path, file in inside.items() if path.startswith(name + "/")}
            entries[name] = {"type": "directory", "oid": directory_id(below), "size": 0, "path": name}
    return [entries[path] for path in sorted(entries)]


@routes("GET", "/api/{kinds}/{repo}/tree/{revision}(?:/{rest})?")
def tree(server, request: Request, kind: str, repo: str, revision: str, rest: str) -> Response:
    repository = server.hub.open(kind, repo, request.user)
    commit = repository.find(revision)
    entries = _entries(commit.files, rest)
    if rest and not entries:
        raise HubError(404, f"{rest} does not exist on {revision}", "EntryNotFound")
    if not request.flag("recursive"):
        depth = rest.count("/") + 1 if rest else 0
        entries = [entry for entry in entries if entry["path"].count("/") == depth]
    if request.flag("expand"):
        entries = [{**entry, **_last_commit(repository, commit, entry["path"])} for entry in entries]
    return _page(server, request, entries)


@routes("POST", "/api/{kinds}/{repo}/paths-info/{revision}")
def paths_info(server, request: Request, kind: str, repo: str, revision: str) -> Response:
    """The entries of those paths that exist."""
    repository = server.hub.open(kind, repo, request.user)
    commit = repository.find(revision)
    if request.headers.get("content-type", "").startswith("application/json"):
        asked = request.json()
        wanted, expand = asked["paths"], asked.get("expand", False)
    else:
        form = parse_qs(request.body.decode())
        wanted, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() in ("1", "true")
    by_path = {entry["path"]: entry for entry in _entries(commit.files, "")}
    entries = [by_path[path.strip("/")] for path in wanted if path.strip("/") in by_path]
    if expand:
        entries = [{**entry, **_last_commit(repository, commit, entry["path"])} for entry in entries]
    return answer_json(entries)


def _info(repository: Repository, commit: Commit, with_blobs: bool) -> dict:
    siblings = []
    for path, file in sorted(commit.files.items()):
        blob = {"size": len(file.content), "blobId": file.blob_id, **_lfs(file, "sha256")} if with_blobs else {}
        siblings.append({"rfilename": path, **blob})
    info = {
        "id": repository.repo_id,
        "author": repository.namespace,
        "sha": commit.oid,
        "createdAt": repository.created,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
        **describe(commit),
    }
    if repository.kind == "model" and "config.json" in commit.files:
        info["config"] = json.loads(commit.files["config.json"].content)
    return info


@routes("GET", "/api/{kinds}/{repo}(?:/revision/{revision})?")
def info(server, request: Request, kind: str, repo: str, revision: str) -> Response:
    repository = server.hub.open(kind, repo, request.user)
    return answer_json(_info(repository, repository.find(revision or "main"), request.flag("blobs")))


@routes("GET", "/api/{kinds}")
def search(server, request: Request, kind: str) -> Response:
    """The repositories of an author, or with a text in their name, that the user may see."""
    wanted, author = request.query.get("search", [""])[0], request.query.get("author", [None])[0]
    found = []
    for (of_kind, repo_id), repository in sorted(server.hub.repositories.items()):
        visible = not repository.private or (request.user and repository.namespace in request.user.namespaces)
        if of_kind == kind and visible and wanted in repo_id and author in (None, repository.namespace):
            found.append(_info(repository, repository.find("main"), with_blobs=False))
    return _page(server, request, found)


@routes("GET", "/api/{kinds}/{repo}/refs")
def refs(server, request: Request, kind: str, repo: str) -> Response:
    repository = server.hub.open(kind, repo, request.user)

    def of(prefix: str, full_names: bool = False) -> list[dict]:
        found = [(ref, oid) for ref, oid in sorted(repository.refs.items()) if ref.startswith(prefix)]
        return [
            {"name": ref if full_names else ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in found
        ]

    listed = {"branches": of("refs/heads/"), "tags": of("refs/tags/"), "converts": of("refs/convert/")}
    if request.flag("include_prs"):
        listed["pullRequests"] = of("refs/pr/", full_names=True)
    return answer_json(listed)


def _new_ref(repository: Repository, ref: str, oid: str) -> Response:
    if ref in repository.refs:
        raise HubError(409, f"Reference {ref} already exists")
    repository.refs[ref] = oid
    return answer_json({})


def _delete_ref(repository: Repository, ref: str) -> Response:
    if repository.refs.pop(ref, None) is None:
        raise HubError(404, f"Reference {ref} does not exist", "RevisionNotFound")
    return answer_json({})


@routes("POST", "/api/{kinds}/{repo}/branch/{branch}")
def create_branch(server, request: Request, kind: str, repo: str, branch: str) -> Response:
    repository = server.hub.open_to_write(kind, repo, request.user)
    start = request.json().get("startingPoint") or "main"
    return _new_ref(repository, f"refs/heads/{branch}", repository.find(start).oid)


@routes("DELETE", "/api/{kinds}/{repo}/branch/{branch}")
def delete_branch(server, request: Request, kind: str, repo: str, branch: str) -> Response:
    repository = server.hub.open_to_write(kind, repo, request.user)
    if branch == "main":
        raise HubError(403, "The branch main cannot be deleted")
    return _delete_ref(repository, f"refs/heads/{branch}")


@routes("POST", "/api/{kinds}/{repo}/tag/{revision}")
def create_tag(server, request: Request, kind: str, repo: str, revision: str) -> Response:
    repository = server.hub.open_to_write(kind, repo, request.user)
    return _new_ref(repository, f"refs/tags/{request.json()['tag']}", repository.find(revision).oid)


@routes("DELETE", "/api/{kinds}/{repo}/tag/{tag}")
def delete_tag(server, request: Request, kind: str, repo: str, tag: str) -> Response:
    return _delete_ref(server.hub.open_to_write(kind, repo, request.user), f"refs/tags/{tag}")


def _discussion(repository: Repository, discussion: Discussion) -> dict:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.date,
        "status": discussion.status,
        "isPullRequest": discussion.is_pull_request,
        "repo": {"name": repository.repo_id, "type": repository.kind},
    }


@routes("GET", "/api/{kinds}/{repo}/discussions")
def discussions(server, request: Request, kind: str, repo: str) -> Response:
    repository = server.hub.open(kind, repo, request.user)
    listed = [_discussion(repository, discussion) for discussion in repository.discussions]
    return answer_json({"discussions": listed, "count": len(listed), "start": 0})


@routes("GET", "/api/{kinds}/{repo}/discussions/{num}")
def discussion_details(server, request: Request, kind: str, repo: str, num: str) -> Response:
    repository = server.hub.open(kind, repo, request.user)
    discussion = repository.discussion(int(num))
    details = _discussion(repository, discussion) | {"events": discussion.events}
    if discussion.is_pull_request:
        base = f"refs/heads/{quote(discussion.base or 'main')}"
        details |= {"changes": {"base": base, "mergeCommitId": discussion.merge_commit}, "filesWithConflicts": []}
    return answer_json(details)


@routes("POST", "/api/{kinds}/{repo}/discussions/{num}/merge")
def merge(server, request: Request, kind: str, repo: str, num: str) -> Response:
    """Takes over the files that the pull request changed."""
    repository = server.hub.open_to_write(kind, repo, request.user)
    discussion = repository.discussion(int(num))
    if not discussion.is_pull_request or discussion.status != "open":
        raise HubError(400, "Only an open pull request can be merged")
    proposed, base = repository.find(f"refs/pr/{num}"), repository.find(discussion.base)
    start = {commit.oid for commit in repository.history(base)}
    fork = next(commit for commit in repository.history(proposed) if commit.oid in start)
    files = {path: file for path, file in base.files.items() if path in proposed.files or path not in fork.files}
    files |= {path: file for path, file in proposed.files.items() if fork.files.get(path) != file}
    new = repository.commit(repository.ref(discussion.base), base, files, discussion.title, "", request.user.name)
    discussion.status, discussion.merge_commit = "merged", new.oid
    return answer_json({})
