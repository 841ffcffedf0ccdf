"""Requests, answers, and the table of routes."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .repositories import User

_FIELDS = {"kinds": "models|datasets|spaces", "prefix": "(?:datasets/|spaces/)?", "repo": "[^/]+/[^/]+", "rest": ".*"}


@dataclass
class Request:
    """A request as it is logged: without its body, and with the status that was answered, None for a cut connection."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    status: int | None = None
    body: bytes = field(default=b"", repr=False)
    user: User | None = field(default=None, repr=False)

    def json(self) -> Any:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def answer_json(value: Any, status: int = 200, **headers: str) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Routes:
    """Functions by method and path. A path such as `/api/{kinds}/{repo}/refs` gives its fields to the function."""

    def __init__(self):
        self._routes: list[tuple[str, re.Pattern, Callable]] = []

    def __call__(self, method: str, template: str):
        def pattern_of(match: re.Match) -> str:
            return f"(?P<{match[1]}>{_FIELDS.get(match[1], '[^/]+')})"

        pattern = re.compile(re.sub(r"\{(\w+)\}", pattern_of, template))

        def register(function: Callable) -> Callable:
            self._routes.append((method, pattern, function))
            return function

        return register

    def find(self, method: str, path: str) -> tuple[Callable, dict[str, str]] | None:
        """The function and its arguments; `kinds` or `prefix` becomes `kind`, "model", "dataset" or "space"."""
        for of_method, pattern, function in self._routes:
            match = pattern.fullmatch(path)
            if match is None or of_method != ("GET" if method == "HEAD" else method):
                continue
            fields = {name: unquote(value or "") for name, value in match.groupdict().items()}
            plural = fields.pop("kinds", None)
            prefix = fields.pop("prefix", None)
            if plural is not None or prefix is not None:
                fields["kind"] = (plural or prefix or "models").rstrip("/").removesuffix("s")
            return function, fields
        return None
