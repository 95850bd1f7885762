"""Reads event streams (spec/events.md §4). Pure: bytes go in, messages come out."""

from dataclasses import dataclass, field
from typing import NamedTuple


class SSEMessage(NamedTuple):
    """One message of an event stream."""

    event: str
    data: str
    id: str | None = None
    retry: float | None = None


@dataclass
class SSEParser:
    """Cuts a byte stream into messages, wherever its pieces end. A faulty message is dropped."""

    _rest: bytes = b""
    _lines: list[str] = field(default_factory=list)

    def feed(self, data: bytes) -> list[SSEMessage]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = []
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", "replace")
            if line:
                self._lines.append(line)
                continue
            message = _message(self._lines)
            self._lines = []
            if message is not None:
                messages.append(message)
        return messages


def _message(lines: list[str]) -> SSEMessage | None:
    fields: dict[str, list[str]] = {"event": [], "data": [], "id": [], "retry": []}
    for line in lines:
        if line.startswith(":"):
            continue
        name, colon, value = line.partition(":")
        if not colon:
            return None
        fields.setdefault(name, []).append(value.removeprefix(" "))
    if not any(fields[name] for name in ("event", "data", "id", "retry")):
        return None
    return SSEMessage(
        event=fields["event"][-1] if fields["event"] else "message",
        data="\n".join(fields["data"]),
        id=fields["id"][-1] if fields["id"] else None,
        retry=_seconds(fields["retry"][-1]) if fields["retry"] else None,
    )


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value / 1000 if value >= 1000 else value  # official servers send seconds, the standard milliseconds
