"""Tokens of the Hub among the words of a command line, which no message may repeat."""

import difflib
import re
from collections.abc import Sequence

_NAMES = ("hub_token", "hf_token", "token")
_NEAR = 0.7  # of difflib: "hub_tokn", "hubtoken" and "hub_key" are near, no other option of this package is
_SHORT = 8  # a value of fewer letters is hidden only where it is a whole word


def hide_tokens(message: str, words: Sequence[str]) -> str:
    """The message without anything that looks like a token, or follows an option whose name is near `hub_token`."""
    message = re.sub(r"\bhf_(?!token\b)\w+", "hf_…", message)
    for value in sorted(_values_of_tokens(words), key=len, reverse=True):
        pattern = re.escape(value) if len(value) >= _SHORT else rf"(?<!\w){re.escape(value)}(?!\w)"
        message = re.sub(pattern, "…", message)
    return message


def _values_of_tokens(words: Sequence[str]) -> set[str]:
    values, follows = set(), False
    for word in words:
        name, *values_of_name = re.split(r"[=:\s]", word.lstrip("-"), maxsplit=1)
        is_option = word.startswith("-")
        near = _is_near(name) or (is_option and "token" in name.lower())
        glued = re.match(r"(?i)hub[_-]?token[_-]?(.{8,})", name)  # --hub_tokenVALUE
        if glued:
            values.add(glued[1])
        if near or (is_option and glued):
            values |= set(values_of_name) - {""}
        elif follows and not is_option:
            values.add(word)
        follows = near or (follows and not is_option)
    return values


def _is_near(name: str) -> bool:
    name = name.lower().replace("-", "_")
    return any(difflib.SequenceMatcher(None, name, token).ratio() >= _NEAR for token in _NAMES)
