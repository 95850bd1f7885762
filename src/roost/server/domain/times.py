"""Instants as the API writes and reads them."""

import contextlib
import re
from datetime import UTC, datetime

from roost.wire.errors import InvalidParameters

_UNITS = {
    "d": ("d|day|days", 86400.0),
    "h": ("h|hr|hrs|hour|hours", 3600.0),
    "m": ("m|min|mins|minute|minutes", 60.0),
    "s": ("s|sec|secs|second|seconds", 1.0),
}
_NUMBER = r"\d{1,12}(?:\.\d{1,6})?"
_DURATION = re.compile(
    r"(?P<sign>[+-])?\s*"
    + r"\s*".join(rf"(?:(?P<{unit}>{_NUMBER})\s*(?:{words}))?" for unit, (words, _) in _UNITS.items()),
    re.ASCII | re.IGNORECASE,
)
_SECONDS = re.compile(rf"[+-]?{_NUMBER}", re.ASCII)


def iso(at: float) -> str:
    """Unix time as ISO 8601 in UTC, always with microseconds: `2026-01-05T04:10:11.123456+00:00`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def parse_start(text: str, now: float) -> float:
    """The instant, Unix time, that `starts_at` means (spec/rest-sessions.md §4.5).

    Args:
        text: ISO 8601, in UTC where it has no offset; or a duration from now: `1d6h`, `90s`, or in seconds `90`.
        now: Unix time, seconds.

    Raises:
        InvalidParameters: it is neither, or no instant that a calendar has.
    """
    text = text.strip()
    try:
        at = _after(text, now)
        iso(at)  # refuses what no calendar has
    except (ValueError, OverflowError, OSError):
        hint = "an ISO 8601 time such as 2026-01-05T04:10:00+00:00, or a duration from now such as `45m` or `1d6h`"
        raise InvalidParameters(f"starts_at cannot be {text!r:.80}", hint=hint) from None
    return at


def parse_duration(text: str) -> float:
    """Seconds of `1d6h`, `90s`, or `90`; with a sign before it.

    Raises:
        ValueError: it is no duration.
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if found is None or not any(found[unit] for unit in _UNITS):
        raise ValueError(text)
    seconds = sum(float(found[unit] or 0) * seconds for unit, (_, seconds) in _UNITS.items())
    return -seconds if found["sign"] == "-" else seconds


def _after(text: str, now: float) -> float:
    with contextlib.suppress(ValueError):
        return now + parse_duration(text)
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
