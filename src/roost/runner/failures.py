"""What an exception of user code is told as."""

from __future__ import annotations

import linecache
import traceback
from _collections import deque  # type: ignore[import-not-found]

from .protocol import MAX_PAYLOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

_MAX_TEXT = MAX_PAYLOAD // 16  # twice this, each character escaped, fits a frame
_MAX_NAME = 256
_MAX_FRAMES = 32
_MAX_LINE = (1 << 31) - 1


def told(error: BaseException) -> dict[str, Any]:
    """The word for it. Its `traceback` is for people too."""
    try:
        value = str(error)
    except BaseException:
        value = "<no text>"
    return {
        "op": "error",
        "name": _class_name(error),
        "value": value[: _MAX_TEXT // 4],
        "traceback": _traceback(error),
        "frames": _frames(error),
    }


def _traceback(error: BaseException) -> list[str]:
    """The formatted traceback from the user's first line on, cut to what a frame carries."""
    start = _first_of_user(error)
    try:
        lines = traceback.format_exception(type(error), error, start)
    except BaseException:
        lines = [f"{_class_name(error)}\n"]
    kept: list[str] = []
    room = _MAX_TEXT
    for line in reversed(lines):  # the last lines say most
        kept.append(line[:room])
        room -= len(line)
        if room <= 0:
            break
    return kept[::-1]


def _frames(error: BaseException) -> list[dict[str, Any]]:
    """Where the exception came from, as data: the innermost frames from the user's first line on, outermost first."""
    places = deque(maxlen=_MAX_FRAMES)
    at = _first_of_user(error)
    while at is not None:
        code = at.tb_frame.f_code
        places.append((code.co_filename, at.tb_lineno, code.co_name))
        at = at.tb_next
    frames = []
    try:
        if isinstance(error, SyntaxError) and error.filename is not None:
            places.append((str(error.filename), int(error.lineno or 0), "<module>"))
        for file, line, name in places:
            text = linecache.getline(file, line).strip()
            place = {"file": file[-_MAX_NAME:], "name": name[:_MAX_NAME], "text": text[:_MAX_NAME]}
            frames.append({**place, "line": min(max(0, line or 0), _MAX_LINE)})
    except BaseException:
        pass
    return frames


def _class_name(error: BaseException) -> str:
    name: str = type.__dict__["__name__"].__get__(type(error))  # its metaclass is the user's
    return name[:_MAX_NAME]


def _first_of_user(error: BaseException) -> TracebackType | None:
    start = error.__traceback__
    while start is not None and not start.tb_frame.f_code.co_filename.startswith("<run "):
        start = start.tb_next
    return start
