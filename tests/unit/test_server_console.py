"""A run as the compatible API shows it (spec/execution.md §2, §5)."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.server.domain.console import STATE_LOST, console_of, exit_code_of
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


def test_what_a_user_must_know_is_told_on_stderr() -> None:
    shown = console_of(
        events(
            (EventKind.STARTED, {"state_lost": True}),
            (EventKind.GAP, {"first": 2, "last": 5, "bytes": 70}),
            (EventKind.ERROR, {"name": "E", "value": "", "traceback": []}),
            (EventKind.END, OK | {"reason": {"code": "memory-limit", "sentence": "too much memory"}}),
        )
    )

    assert shown == [["stderr", f"{STATE_LOST}[70 bytes of output were dropped here]\ntoo much memory\n"]]


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
