"""A run as clients of the compatible API see it (spec/execution.md §2 to §5)."""

from collections.abc import Iterable
from typing import Any

from roost.wire.runs import Event, EventKind, RunEnd, RunStatus

STATE_LOST = "The interpreter was started anew: variables of earlier runs are gone.\n"


def console_of(events: Iterable[Event]) -> list[list[Any]]:
    """Console items; contiguous pieces of one stream are one item.

    The value of the last expression comes as `stdout` without a line end. Tracebacks are on stderr already, so
    `error` adds nothing.
    """
    items: list[list[Any]] = []
    for event in events:
        for kind, data in _items(event):
            if items and kind in ("stdout", "stderr") and items[-1][0] == kind:
                items[-1][1] += data
            else:
                items.append([kind, data])
    return items


def exit_code_of(end: RunEnd) -> int:
    """The compatible exit code: 0 also for exceptions that nobody caught; 130 only when the sandbox is gone."""
    return 0 if end.status in (RunStatus.ERROR, RunStatus.INTERRUPTED) else end.exit_code


def _items(event: Event) -> Iterable[tuple[str, Any]]:
    match event.kind:
        case EventKind.STDOUT | EventKind.STDERR:
            yield event.kind.value, event.data
        case EventKind.STARTED if event.data.get("state_lost"):
            yield "stderr", STATE_LOST
        case EventKind.PROMPT:
            yield "stdout", event.data["text"]
        case EventKind.RESULT:
            yield "stdout", event.data["text"]
        case EventKind.GAP:
            yield "stderr", f"[{event.data['bytes']} bytes of output were dropped here]\n"
        case EventKind.END if event.data.get("reason"):
            yield "stderr", f"{event.data['reason']['sentence']}\n"
        case _:
            pass
