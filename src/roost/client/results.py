"""What a run gave, summed up from its events."""

import binascii
from collections.abc import Iterable
from typing import Any

import msgspec

from roost.client.errors import NotUnderstood
from roost.wire.mime import PLAIN
from roost.wire.reasons import Reason
from roost.wire.runs import Cost, Event, EventKind, RunEnd, RunStatus


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave."""

    text: str
    """The last expression's value, else what was written to stdout."""
    stdout: str
    stderr: str
    """What was written there; the traceback of an exception that nobody caught is part of it."""
    exit_code: int
    status: RunStatus
    reason: Reason | None = None
    cost: Cost = Cost()
    stages: dict[str, int] = {}
    """The exit codes of the stages `clean` and `build` of a batch run; that of `exec` is the run's own."""
    display: list[dict[str, str]] = []
    """What was displayed, the last expression's value included: for each the contents by MIME type, images in base64.
    An update has taken the place of what it updates."""

    @property
    def html(self) -> str | None:
        """The last HTML that was displayed."""
        return self._last("text/html")

    @property
    def png(self) -> bytes | None:
        """The last PNG image that was displayed."""
        content = self._last("image/png")
        try:
            return None if content is None else binascii.a2b_base64(content)
        except ValueError as error:
            raise NotUnderstood(f"not an image in base64: {content!r:.100}") from error

    def _last(self, mime: str) -> str | None:
        return next((bundle[mime] for bundle in reversed(self.display) if mime in bundle), None)


def result_of(events: Iterable[Event]) -> Result:
    """Sum up a run's events.

    Raises:
        NotUnderstood: its `end` is missing or cannot be read.
    """
    written: dict[EventKind, list[str]] = {EventKind.STDOUT: [], EventKind.STDERR: []}
    value: str | None = None
    display: list[tuple[str | None, dict[str, str]]] = []
    stages: dict[str, int] = {}
    end: RunEnd | None = None
    for event in events:
        match event.kind:
            case EventKind.STDOUT | EventKind.STDERR:
                written[event.kind].append(str(event.data))
            case EventKind.RESULT:
                value = str(event.data.get("text", ""))
                display.append((None, {PLAIN: value, **event.data.get("mime", {})}))
            case EventKind.DISPLAY:
                display = _with_display(display, event.data)
            case EventKind.STAGE:
                stages[str(event.data["stage"])] = int(event.data["exit_code"])
            case EventKind.END:
                end = read_end(event)
            case _:
                pass
    if end is None:
        raise NotUnderstood("the run's events stop before its end")
    stdout = "".join(written[EventKind.STDOUT])
    return Result(
        text=value if value is not None else stdout,
        stdout=stdout,
        stderr="".join(written[EventKind.STDERR]),
        exit_code=end.exit_code,
        status=end.status,
        reason=end.reason,
        cost=end.cost,
        stages=stages,
        display=[bundle for _, bundle in display],
    )


def _with_display(
    display: list[tuple[str | None, dict[str, str]]], data: dict[str, Any]
) -> list[tuple[str | None, dict[str, str]]]:
    identifier, bundle = data.get("display_id"), dict(data.get("mime", {}))
    if data.get("update") and any(one == identifier for one, _ in display):
        return [(one, bundle if one == identifier else before) for one, before in display]
    return [*display, (identifier, bundle)]


def read_end(event: Event) -> RunEnd:
    try:
        return msgspec.convert(event.data, RunEnd)
    except msgspec.ValidationError as error:
        raise NotUnderstood(f"the run's end cannot be read: {error}") from error
