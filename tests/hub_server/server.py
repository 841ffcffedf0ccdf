"""The sockets, and `HubServer`, which tests hold."""

import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from . import api, files
from .faults import Fault, Faults
from .messages import Request, Response, answer_json
from .repositories import Commit, File, Hub, HubError, Repository, User, is_large

_UNSET = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_MODULES_CACHE", "HF_TOKEN")
_REASONS = {408: "Request Timeout", 429: "Too Many Requests", 500: "Internal Error", 503: "Service Unavailable"}


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, lets the fault for it happen, and sends the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Listener"

    def serve(self) -> None:
        hub = self.server.hub_server
        target = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, target.path, parse_qs(target.query, keep_blank_values=True), headers)
        hub.requests.append(request)
        fault = hub.faults.take(request.method, request.path) or Fault(request.path)
        if fault.cut_upload is not None:
            self.rfile.read(min(fault.cut_upload, int(headers.get("content-length", fault.cut_upload))))
            return self._cut(fault)
        request.body = self._read_body()
        time.sleep(fault.delay)
        if fault.drop == "request":
            return self._cut(fault)
        response = _error_answer(fault) if fault.status else hub.answer(request, self.server.storage)
        request.body = b""
        if fault.drop == "answer":
            return self._cut(fault)
        request.status = response.status
        self._send(response, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, response: Response, fault: Fault) -> None:
        body = bytearray(response.body)
        if fault.flip is not None:
            body[fault.flip] ^= 0xFF
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        cut = min(fault.cut_download, len(body)) if fault.cut_download is not None else None
        self._headers_buffer.append(b"\r\n" + (b"" if self.command == "HEAD" else bytes(body[:cut])))
        self.flush_headers()
        if cut is not None:
            time.sleep(0.2)  # a reset throws away what the client has not yet read
            self._cut(fault)

    def _cut(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args) -> None:
        """`HubServer.requests` is the log."""


class _Listener(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub_server: "HubServer", storage: bool):
        self.hub_server, self.storage = hub_server, storage
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        host = "localhost" if self.storage else "127.0.0.1"  # clients tell hosts apart by name, not by port
        return f"http://{host}:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no error of the server; anything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _error_answer(fault: Fault) -> Response:
    reason = _REASONS.get(fault.status, "Error")
    response = answer_json({"error": reason}, fault.status, **{"X-Error-Message": reason})
    if fault.retry_after is not None:
        response.headers["Retry-After"] = str(fault.retry_after)
    return response


class HubServer:
    """A running Hub, empty but for its users. Large files lie on a second host, as with the Hub.

    `requests` is the log of all that was asked, in order. Tests change the state directly (`hub.users`,
    `hub.repositories`) or through the methods below.

    Args:
        part_size: larger files are uploaded in parts of so many bytes.
        page_size: entries of a page of a listing.
    """

    user, token = "alice", "hf_" + "a" * 34

    def __init__(self, part_size: int = 16 * 2**20, page_size: int = 1000):
        self.part_size, self.page_size = part_size, page_size
        self.hub, self.faults = Hub(), Faults()
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[Request] = []
        self._lock = threading.RLock()
        self._listeners = [_Listener(self, storage=False), _Listener(self, storage=True)]
        self.url, self.storage_url = (listener.url for listener in self._listeners)
        self.add_user(self.user, self.token)

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process whose clients speak to this server and keep their files in `home`."""
        environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return environment | ({"HF_TOKEN": token} if token else {})

    def add_user(self, name: str, token: str, organizations: tuple[str, ...] = (), can_write: bool = True) -> User:
        """A user's token; a user may have several, with different rights."""
        self.hub.users[token] = User(name, token, organizations, can_write)
        return self.hub.users[token]

    def fail(self, path: str, **fault) -> None:
        """Let the next request for this path fail: see [`Fault`]."""
        self.faults.add(Fault(path, **fault))

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        return self.hub.repositories[kind, repo_id]

    def head(self, repo_id: str, kind: str = "model", revision: str = "main") -> Commit:
        return self.repository(repo_id, kind).find(revision)

    def add_repository(self, repo_id: str, content: Path | Mapping[str, bytes], kind: str = "model", **options) -> str:
        """A repository with the files of a folder or a mapping; returns its commit."""
        if isinstance(content, Path):
            paths = [path for path in content.rglob("*") if path.is_file()]
            content = {path.relative_to(content).as_posix(): path.read_bytes() for path in paths}
        owner = User(repo_id.partition("/")[0], "")
        repository = self.hub.create(kind, repo_id, owner, **options)
        parent = repository.find("main")
        added = {path: File(data, is_large(path, len(data))) for path, data in content.items()}
        self.hub.objects.update({file.sha256: file.content for file in added.values() if file.lfs})
        return repository.commit("refs/heads/main", parent, parent.files | added, "Add files", "", owner.name).oid

    def asked(self, path: str, method: str | None = None) -> list[Request]:
        """The requests whose path matches the regular expression."""
        return [r for r in self.requests if re.search(path, r.path) and method in (None, r.method)]

    def answer(self, request: Request, storage: bool) -> Response:
        try:
            request.user = None if storage else self._user(request)
            routes = (files.storage_routes,) if storage else (api.routes, files.routes)
            found = next(filter(None, (table.find(request.method, request.path) for table in routes)), None)
            if found is None:
                raise HubError(404, "Sorry, we can't find the page you are looking for.")
            function, fields = found
            with self._lock:
                return function(self, request, **fields)
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            return answer_json({"error": error.message}, error.status, **headers)
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            return answer_json({"error": f"Bad request: {error!r}"}, 400)

    def _user(self, request: Request) -> User | None:
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        user = self.hub.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user
