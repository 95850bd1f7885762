"""MIME bundles: one object in several types, as `result` and `display` events carry them (docs/protocol/http.md)."""

from collections.abc import Mapping

import msgspec

PLAIN = "text/plain"
NOTE = "application/vnd.roost.note+json"
"""What had to be left out of a bundle: a `Note`."""

_TOLD = 3


class Dropped(msgspec.Struct, frozen=True):
    """One type that was too long for a frame."""

    mime: str
    bytes: int


class Note(msgspec.Struct, frozen=True):
    """What a bundle lacks."""

    dropped: list[Dropped]
    more: int = 0
    """How many are not listed."""


def sentence_of(bundle: Mapping[str, str]) -> str | None:
    """What to tell a person about what a bundle lacks; None if it lacks nothing."""
    if NOTE not in bundle:
        return None
    try:
        note = msgspec.json.decode(bundle[NOTE], type=Note)
    except (msgspec.DecodeError, RecursionError):  # written inside the sandbox
        return None
    named = [f"{one.mime:.128} of {one.bytes} bytes" for one in note.dropped[:_TOLD]]
    more = len(note.dropped) - len(named) + max(0, note.more)
    if more:
        named.append(f"{more} more")
    return f"too long to be shown: {', '.join(named)}"
