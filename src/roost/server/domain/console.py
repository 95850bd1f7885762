"""A run as clients of the compatible API see it (spec/execution.md §2 to §5)."""

from collections.abc import Iterable, Mapping
from typing import Any

from roost.wire.mime import PLAIN, sentence_of
from roost.wire.runs import Event, EventKind, RunEnd, RunStatus

STATE_LOST = "The interpreter was started anew: variables of earlier runs are gone.\n"

_RICHEST = (
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "application/json",
)
_DATA_URIS = frozenset({"image/png", "image/jpeg"})


def console_of(events: Iterable[Event]) -> list[list[Any]]:
    """Console items; contiguous pieces of one stream are one item.

    What is displayed is one item, of the richest type there is; an update is a further one. Where there is only plain
    text it comes as `stdout`, and the value of the last expression without a line end. Tracebacks are on stderr
    already, so `error` adds nothing.
    """
    items: list[list[Any]] = []
    for event in events:
        for kind, data in _items(event):
            if items and kind in ("stdout", "stderr") and items[-1][0] == kind:
                items[-1][1] += data
            else:
                items.append([kind, data])
    return items


def gap_sentence(gap: Mapping[str, Any]) -> str:
    """What stands in the place of events that are gone."""
    return f"[events {gap['first']} to {gap['last']} are gone from the log]\n"


def exit_code_of(end: RunEnd, mode: str | None = "query") -> int:
    """The compatible exit code: in query mode 0 also for exceptions that nobody caught (spec/execution.md §4.1)."""
    return 0 if mode == "query" and end.status in (RunStatus.ERROR, RunStatus.INTERRUPTED) else end.exit_code


def _items(event: Event) -> Iterable[tuple[str, Any]]:
    match event.kind:
        case EventKind.STDOUT | EventKind.STDERR:
            yield event.kind.value, event.data
        case EventKind.STARTED if event.data.get("state_lost"):
            yield "stderr", STATE_LOST
        case EventKind.GAP:
            yield "stderr", gap_sentence(event.data)
        case EventKind.PROMPT if event.data["text"]:
            yield "stdout", event.data["text"]
        case EventKind.RESULT:
            yield from _shown(event.data["mime"], event.data["text"])
        case EventKind.DISPLAY:
            yield from _shown(event.data["mime"], event.data["mime"].get(PLAIN, "") + "\n")
        case EventKind.END if event.data.get("reason"):
            yield "stderr", f"{event.data['reason']['sentence']}\n"
        case _:
            pass


def _shown(bundle: Mapping[str, str], plain: str) -> Iterable[tuple[str, Any]]:
    mime = next((mime for mime in _RICHEST if mime in bundle), None)
    match mime:
        case None:
            yield "stdout", plain
        case "text/html":
            yield "html", bundle[mime]
        case _:
            content = bundle[mime]
            yield "media", [mime, f"data:{mime};base64,{content}" if mime in _DATA_URIS else content]
    if (sentence := sentence_of(bundle)) is not None:
        yield "stderr", f"[{sentence}]\n"
