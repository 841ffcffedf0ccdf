"""The routes of contents: downloads, and large files on their way in."""

import base64
import hashlib
import hmac
import json
import math
import re
import secrets

from .messages import Request, Response, Routes, answer_json
from .repositories import File, HubError

routes = Routes()
storage_routes = Routes()
_SECRET = secrets.token_bytes()


def _signed(url: str) -> str:
    """Storage knows no tokens: whoever has a signed address may use it."""
    path = "/" + url.split("/", 3)[3]
    return f"{url}?signature={hmac.new(_SECRET, path.encode(), 'sha256').hexdigest()}"


def _check_signature(request: Request) -> None:
    expected = hmac.new(_SECRET, request.path.encode(), "sha256").hexdigest()
    if request.query.get("signature") != [expected]:
        raise HubError(403, "Access denied")


def _content(request: Request, content: bytes, **headers: str) -> Response:
    """All of the content, or the range of bytes that the request asks for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return Response(200, content, headers)
    first, last = asked.groups()
    size = len(content)
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    return Response(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


@routes("GET", "/{prefix}{repo}/(?:resolve|raw)/{revision}/{rest}")
def resolve(server, request: Request, kind: str, repo: str, revision: str, rest: str) -> Response:
    repository = server.hub.open(kind, repo, request.user, contents=True)
    commit = repository.find(revision)
    headers = {"X-Repo-Commit": commit.oid}
    if rest not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", headers=headers)
    file: File = commit.files[rest]
    headers["ETag"] = f'"{file.blob_id}"'
    headers["Content-Disposition"] = f'inline; filename="{rest.rpartition("/")[2]}"'
    if not file.lfs:
        return _content(request, file.content, **headers)
    headers["X-Linked-Size"] = str(len(file.content))
    headers["X-Linked-ETag"] = f'"{file.sha256}"'
    headers["Location"] = _signed(f"{server.storage_url}/{file.sha256}")
    return Response(302, b"", headers)


@routes("POST", "/{prefix}{repo}.git/info/lfs/objects/batch")
def lfs_batch(server, request: Request, kind: str, repo: str) -> Response:
    """Where to put each object: in one piece, or in parts of the server's `part_size`; nothing for what is there."""
    wanted = request.json()
    if wanted.get("ref") is None:  # a pull request from a reader
        repository = server.hub.open(kind, repo, request.user)
    else:
        repository = server.hub.open_to_write(kind, repo, request.user)
    prefix = f"{server.url}/{repository.prefix}{repo}.git/info/lfs/objects"
    objects = []
    for asked in wanted["objects"]:
        known = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in server.hub.objects:
            known["actions"] = {
                "upload": _upload_action(server, prefix, asked["oid"], asked["size"]),
                "verify": {"href": f"{prefix}/verify", "header": {}},
            }
        objects.append(known)
    return answer_json({"transfer": "basic", "objects": objects})


def _upload_action(server, prefix: str, oid: str, size: int) -> dict:
    if size <= server.part_size:
        return {"href": _signed(f"{server.storage_url}/{oid}"), "header": {}}
    parts = range(1, math.ceil(size / server.part_size) + 1)
    urls = {str(part): _signed(f"{server.storage_url}/{oid}/{part}") for part in parts}
    return {"href": f"{prefix}/{oid}/complete", "header": {"chunk_size": str(server.part_size), **urls}}


@routes("POST", "/{prefix}{repo}.git/info/lfs/objects/{oid}/complete")
def lfs_complete(server, request: Request, kind: str, repo: str, oid: str) -> Response:
    asked = request.json()
    parts = [server.parts.get((oid, part["partNumber"])) for part in asked["parts"]]
    if None in parts or [part["etag"] for part in asked["parts"]] != [hashlib.md5(part).hexdigest() for part in parts]:
        raise HubError(400, "One or more of the specified parts could not be found.")
    _store(server, oid, b"".join(parts))
    return answer_json({"success": True})


@routes("POST", "/{prefix}{repo}.git/info/lfs/objects/verify")
def lfs_verify(server, request: Request, kind: str, repo: str) -> Response:
    server.hub.open(kind, repo, request.user)
    asked = request.json()
    content = server.hub.objects.get(asked["oid"])
    if content is None or len(content) != asked["size"]:
        raise HubError(404, "Object does not exist or has another size")
    return answer_json({})


def _store(server, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "The SHA-256 you specified did not match what we received.")
    server.hub.objects[oid] = content


@storage_routes("PUT", "/{oid}")
def put_object(server, request: Request, oid: str) -> Response:
    _check_signature(request)
    _store(server, oid, request.body)
    return Response(200, b"", {"ETag": hashlib.md5(request.body).hexdigest()})


@storage_routes("PUT", "/{oid}/{part}")
def put_part(server, request: Request, oid: str, part: str) -> Response:
    _check_signature(request)
    server.parts[oid, int(part)] = request.body
    return Response(200, b"", {"ETag": hashlib.md5(request.body).hexdigest()})


@storage_routes("GET", "/{oid}")
def get_object(server, request: Request, oid: str) -> Response:
    _check_signature(request)
    return _content(request, server.hub.objects[oid], ETag=f'"{oid}"')


def read_commit(server, body: bytes, files: dict[str, File]) -> tuple[dict, dict[str, File]]:
    """The header of a commit's lines, and the files after its changes to `files`."""
    files, header = dict(files), {}
    for line in body.splitlines():
        entry = json.loads(line)
        key, value = entry["key"], entry["value"]
        path = value.get("path", "").rstrip("/")
        if key == "header":
            header = value
        elif key == "file":
            files[path] = File(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in server.hub.objects:
                raise HubError(400, f"An LFS pointer points to an object that does not exist: {path}")
            files[path] = File(server.hub.objects[value["oid"]], lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(path + "/"))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation {key!r}")
    return header, files
