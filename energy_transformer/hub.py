"""Models and processors from a folder or the Hub, with a user's mistake told in one line."""

from typing import Any

from safetensors import SafetensorError

from .errors import UserError


def load_pretrained(auto_class: Any, name_or_path: str, **kwargs) -> Any:
    """`auto_class.from_pretrained(name_or_path, **kwargs)`.

    Raises:
        UserError: when there is nothing of that kind under that name, or the Hub cannot be reached.
    """
    try:
        return auto_class.from_pretrained(name_or_path, **kwargs)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load {name_or_path!r} with {auto_class.__name__}: {reason}") from error
