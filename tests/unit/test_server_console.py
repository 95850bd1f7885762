"""A run as the compatible API shows it (spec/execution.md §2, §5)."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.server.domain.console import STATE_LOST, console_of, exit_code_of
from roost.wire.mime import NOTE
from roost.wire.runs import Event, EventKind, RunEnd, RunStatus

OK = {"status": "ok", "exit_code": 0, "cost": {}}


def events(*pairs: tuple[EventKind, Any]) -> list[Event]:
    return [Event(seq, kind, data) for seq, (kind, data) in enumerate(pairs, 1)]


def test_pieces_of_one_stream_are_one_item_and_the_order_between_streams_stays() -> None:
    shown = console_of(
        events(
            (EventKind.STARTED, {"state_lost": False}),
            (EventKind.STDOUT, "a"),
            (EventKind.STDOUT, "b\n"),
            (EventKind.STDERR, "e\n"),
            (EventKind.STDOUT, "c\n"),
            (EventKind.RESULT, {"text": "2", "mime": {}}),
            (EventKind.END, OK),
        )
    )

    assert shown == [["stdout", "ab\n"], ["stderr", "e\n"], ["stdout", "c\n2"]]


def test_a_prompt_is_shown_if_it_has_a_text() -> None:
    asked = console_of(events((EventKind.PROMPT, {"prompt": 1, "text": "name? ", "password": False})))
    waited = console_of(events((EventKind.PROMPT, {"prompt": 1, "text": "", "password": False})))

    assert asked == [["stdout", "name? "]]
    assert waited == []


def test_what_a_user_must_know_is_told_on_stderr() -> None:
    shown = console_of(
        events(
            (EventKind.STARTED, {"state_lost": True}),
            (EventKind.GAP, {"first": 2, "last": 5, "bytes": 70}),
            (EventKind.ERROR, {"name": "E", "value": "", "traceback": []}),
            (EventKind.END, OK | {"reason": {"code": "memory-limit", "sentence": "too much memory"}}),
        )
    )

    assert shown == [["stderr", f"{STATE_LOST}[events 2 to 5 are gone from the log]\ntoo much memory\n"]]


@pytest.mark.parametrize(
    ("status", "code", "shown"),
    [
        (RunStatus.OK, 0, 0),
        (RunStatus.ERROR, 1, 0),
        (RunStatus.INTERRUPTED, 130, 0),
        (RunStatus.EXITED, 7, 7),
        (RunStatus.KERNEL_DIED, 137, 137),
        (RunStatus.SANDBOX_LOST, 130, 130),
    ],
)
def test_exceptions_have_exit_code_0_and_130_means_that_the_sandbox_is_gone(
    status: RunStatus, code: int, shown: int
) -> None:
    assert exit_code_of(RunEnd(status=status, exit_code=code)) == shown


@given(st.lists(st.tuples(st.sampled_from([EventKind.STDOUT, EventKind.STDERR]), st.text())))
def test_no_text_is_lost_and_no_two_neighbours_are_alike(pairs: list[tuple[EventKind, str]]) -> None:
    shown = console_of(events(*pairs))

    for stream in ("stdout", "stderr"):
        assert "".join(text for kind, text in shown if kind == stream) == "".join(
            text for kind, text in pairs if kind == stream
        )
    assert all(before[0] != after[0] for before, after in itertools.pairwise(shown))


RICHEST_FIRST = [
    ("text/html", "<b>1</b>", ["html", "<b>1</b>"]),
    ("image/svg+xml", "<svg/>", ["media", ["image/svg+xml", "<svg/>"]]),
    ("image/png", "iVBORw==", ["media", ["image/png", "data:image/png;base64,iVBORw=="]]),
    ("image/jpeg", "/9j/", ["media", ["image/jpeg", "data:image/jpeg;base64,/9j/"]]),
    ("text/markdown", "# 1", ["media", ["text/markdown", "# 1"]]),
    ("text/latex", "$1$", ["media", ["text/latex", "$1$"]]),
    ("application/json", "[1]", ["media", ["application/json", "[1]"]]),
]


@pytest.mark.parametrize("first", range(len(RICHEST_FIRST)))
def test_of_a_bundle_the_richest_type_is_the_one_item(first: int) -> None:
    bundle = {mime: content for mime, content, _ in reversed(RICHEST_FIRST[first:])}

    value = console_of(events((EventKind.RESULT, {"text": "1", "mime": bundle})))
    shown = console_of(events((EventKind.DISPLAY, {"mime": {"text/plain": "1"} | bundle})))

    assert value == shown == [RICHEST_FIRST[first][2]]


def test_where_there_is_only_text_displays_are_lines_and_a_value_is_none() -> None:
    shown = console_of(
        events(
            (EventKind.DISPLAY, {"mime": {"text/plain": "1", "application/vnd.of.nobody+json": "{}"}}),
            (EventKind.DISPLAY, {"mime": {"text/plain": "2"}, "display_id": "a", "update": True}),
            (EventKind.RESULT, {"text": "3", "mime": {}}),
        )
    )

    assert shown == [["stdout", "1\n2\n3"]]


def test_updates_are_further_items() -> None:
    shown = console_of(
        events(
            (EventKind.DISPLAY, {"mime": {"text/html": "1"}, "display_id": "a"}),
            (EventKind.DISPLAY, {"mime": {"text/html": "2"}, "display_id": "a", "update": True}),
        )
    )

    assert shown == [["html", "1"], ["html", "2"]]


def test_what_a_bundle_lacks_is_told_on_stderr() -> None:
    note = '{"dropped": [{"mime": "image/png", "bytes": 2000000}, {"mime": "a/b", "bytes": 3000000}], "more": 4}'

    shown = console_of(events((EventKind.DISPLAY, {"mime": {"text/plain": "1", NOTE: note}})))

    sentence = "too long to be shown: image/png of 2000000 bytes, a/b of 3000000 bytes, 4 more"
    assert shown == [["stdout", "1\n"], ["stderr", f"[{sentence}]\n"]]


@pytest.mark.parametrize("note", ["", "[]", '{"dropped": 1}', '{"dropped": [{"mime": 1}]}', "[" * 100_000])
def test_a_note_that_is_none_is_not_told(note: str) -> None:
    assert console_of(events((EventKind.DISPLAY, {"mime": {"text/plain": "1", NOTE: note}}))) == [["stdout", "1\n"]]


def test_a_display_without_any_type_is_an_empty_line() -> None:
    assert console_of(events((EventKind.DISPLAY, {"mime": {}}))) == [["stdout", "\n"]]
