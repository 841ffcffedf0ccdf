"""One option for each field of a dataclass: in groups, with defaults that a recipe may give, and errors on one line."""

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any

from transformers.hf_argparser import HfArgumentParser

from .command_line import OneLineErrors

_PLACEHOLDERS = {int: "N", float: "X", str: "TEXT"}


def whole_number(text: str) -> int:
    """An integer, also one that is written as 1e3."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


whole_number.__name__ = "int"  # which errors name


class JoinedByCommas(argparse.Action):
    """An option that may be given several times."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


class OptionParser(OneLineErrors, HfArgumentParser):
    """The options of a dataclass, whose fields may name a `group` beside their `help` in the metadata.

    Args:
        dataclass_type: what declares the options.
        description: what the program does, above the options.
        synonyms: what other programs call an option, with the words for it here.
        usage: the first line of the help.
    """

    def __init__(
        self,
        dataclass_type: type,
        description: str | None = None,
        synonyms: Mapping[str, str] | None = None,
        usage: str = "%(prog)s [--option value ...]",
    ):
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        super().__init__(
            dataclass_type,
            description=description,
            usage=usage,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        self.synonyms = synonyms or {}

    def given(self, words: Sequence[str], source: object = "") -> dict[str, Any]:
        """The options that these words give, by name, without the defaults of the others.

        Errors name the `source` of the words, such as a file.
        """
        defaults = {action: action.default for action in self._actions}
        self.source = f"{source}: " if source else ""
        try:
            for action in self._actions:
                action.default = argparse.SUPPRESS
            return vars(self.parse_args(words))
        finally:
            for action, default in defaults.items():
                action.default = default

    def _parse_dataclass_field(self, parser: argparse.ArgumentParser, field: Field) -> None:  # type: ignore[override]
        own = copy.copy(field)
        own.metadata = {name: value for name, value in field.metadata.items() if name != "group"}  # type: ignore
        group = field.metadata.get("group")
        if group and group not in self._groups:
            self._groups[group] = self.add_argument_group(group)
        first = len(self._actions)
        super()._parse_dataclass_field(self._groups[group] if group else parser, own)
        for action in self._actions[first:]:
            if action.type is int:
                action.type = whole_number
            if action.nargs == 0:  # --no_NAME, which comes with a switch that is on
                action.help = f"Turn {action.dest} off."
            elif action.choices is None:
                kind = int if action.type is whole_number else action.type
                action.metavar = _PLACEHOLDERS.get(kind, "BOOL")


class _Help(argparse.HelpFormatter):
    """Each option under one name, with its default after its sentence."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if action.nargs == 0:
            return max(action.option_strings, key=len)  # of -h and --help the latter
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        if any(default is each for each in (None, False, argparse.SUPPRESS)) or action.nargs == 0:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} (default: {shown})".replace("%", "%%")
