"""JSON by the C parts of the package `json`, whose own imports would take a third of a runner's start.

Those parts are CPython's own; where they are not there, or have changed, the package itself is taken.
"""

from __future__ import annotations

try:
    from _json import encode_basestring, encode_basestring_ascii, make_scanner
except ImportError:
    from json.encoder import encode_basestring, encode_basestring_ascii
    from json.scanner import make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def to_json(message: Any) -> bytes:
    """Compact UTF-8. What UTF-8 cannot carry (lone surrogates) becomes a question mark."""
    return _encode(message, encode_basestring).encode("utf-8", "replace")


def to_ascii_json(message: Any) -> bytes:
    """The same in ASCII, which carries every string."""
    return _encode(message, encode_basestring_ascii).encode()


def from_json(data: bytes | str) -> Any:
    """The value that a whole text holds.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is too deep.
    """
    text = (data if isinstance(data, str) else str(data, "utf-8", "surrogatepass")).strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):
        # Some faults the C scanner reports by an error of `json.decoder`; where that is not loaded, by a SystemError.
        raise ValueError("no JSON") from None
    if end != len(text):
        raise ValueError("something behind the value")
    return value


def _encode(value: Any, quote: Callable[[str], str]) -> str:
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join([quote(key) + ":" + _encode(one, quote) for key, one in value.items()]) + "}"
    return "[" + ",".join([_encode(one, quote) for one in value]) + "]"


def _refuse(name: str) -> Any:
    raise ValueError(name + " is no JSON")


class _Rules:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse)


_scan = make_scanner(_Rules)  # type: ignore[arg-type]
