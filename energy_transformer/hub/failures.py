"""What went wrong between us and the Hub: whether to try again, and one line that says it."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..utils.errors import UserError

logger = logging.getLogger(__name__)

WAITS = (1, 2, 4, 8)  # seconds before each new attempt
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)  # all that the client raises
_TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)  # 409 and 412: another commit came in between

Result = TypeVar("Result")


def origin(error: BaseException) -> BaseException:
    """The answer of the Hub or the broken connection behind an error that the client raised in its place."""
    while not isinstance(error, HTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    cause = origin(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _TRANSIENT
    if isinstance(error, LocalEntryNotFoundError):
        return False  # no connection at all, or forbidden
    return isinstance(cause, HTTPError) or "Consistency check failed" in str(cause)


def with_retries(action: Callable[[], Result]) -> Result:
    """`action()`, again after each transient error, at most `len(WAITS)` times."""
    for wait in WAITS:
        try:
            return action()
        except HUB_ERRORS as error:
            if not is_transient(error):
                raise
            logger.warning("%s; trying again in %d s", explain(error), wait)
            time.sleep(wait)
    return action()


def require_repo_id(repo_id: str) -> None:
    """Raise a `UserError` unless the Hub allows the name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(explain(error)) from error


def require_token(token: str | None) -> None:
    """Raise a `UserError` unless a token is given, set in the environment or stored by a login."""
    token = token or get_token()
    if token is None:
        raise UserError("there is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN")
    if not (token.isascii() and token.isprintable()):
        raise UserError("the token holds characters that no token of the Hub has")


def explain(error: BaseException, repo_id: str = "the repository") -> str:
    """One line for an error of the client; it never holds a token."""
    cause = origin(error)
    if isinstance(cause, HFValidationError):
        return f"the Hub does not allow this name: {_first_line(cause)}"
    if isinstance(cause, GatedRepoError):
        return f"access to {repo_id} must be asked for on its page, {constants.ENDPOINT}/{repo_id}"
    if isinstance(cause, RevisionNotFoundError):
        return f"{repo_id} has no such revision (a branch, a tag or a commit)"
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{repo_id} is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub"
    if isinstance(cause, HfHubHTTPError):
        return _explain_answer(cause, repo_id)
    if isinstance(cause, HTTPError):
        return f"the Hub ({constants.ENDPOINT}) cannot be reached: {_first_line(cause)}"
    return _first_line(error)


def _explain_answer(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    refused = error.response.headers.get("X-Error-Message", "")
    if status == 401 and "credentials" in refused:
        return "the Hub does not know the token: log in with `hf auth login`, or set HF_TOKEN to a valid one"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo_id}, or it is private and needs a token with the right to it"
    if status == 403:
        action = "read" if error.response.request.method in ("GET", "HEAD") else "write to"
        return f"the token has no right to {action} {repo_id}"
    message = (error.server_message or "").strip() or error.response.reason_phrase
    return f"the Hub answered {status}: {message.splitlines()[0] if message else 'without a reason'}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
