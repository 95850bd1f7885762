"""The loop of `roost shell`, without a terminal."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import click
import pytest

from roost.cli.shell import converse
from roost.wire.errors import SessionNotFound, TooManyRuns
from roost.wire.runs import Event, EventKind, InterruptOutcome


class Handle:
    """Starts runs that end at once, unless it is told to raise something instead."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self.outcomes = list(outcomes)
        self.started: list[str] = []
        self.ids: list[str] = []
        self.interrupted: list[str] = []

    def start(self, text: str, *, run_id: str) -> "Run":
        self.started.append(text)
        self.ids.append(run_id)
        if (outcome := self.outcomes.pop(0)) is not None:
            raise outcome
        return Run(self, run_id)

    def get_run(self, run_id: str) -> "Run":
        return Run(self, run_id)


class Run:
    def __init__(self, handle: Handle, run_id: str) -> None:
        self.handle = handle
        self.id = run_id

    def events(self, after: int = 0) -> Iterator[Event]:
        yield Event(1, EventKind.END, {"status": "ok", "exit_code": 0})

    def interrupt(self, *, grace_s: float | None = None) -> InterruptOutcome:
        self.handle.interrupted.append(self.id)
        return InterruptOutcome.SENT


def typed(*lines: str | type[BaseException]) -> Callable[[], str]:
    left = iter((*lines, EOFError))

    def read() -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return read


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    with click.Context(click.Command("roost")):
        yield


def talk(handle: Handle, *lines: str | type[BaseException]) -> None:
    converse(typed(*lines), cast(Any, handle))


def test_what_is_typed_is_run_and_blank_and_given_up_lines_are_not() -> None:
    handle = Handle(None, None)

    talk(handle, "a", "  ", KeyboardInterrupt, "b")

    assert handle.started == ["a", "b"]
    assert handle.interrupted == []


def test_an_interrupt_before_the_run_is_known_interrupts_it_and_the_shell_goes_on() -> None:
    handle = Handle(KeyboardInterrupt(), None)

    talk(handle, "a", "b")

    assert handle.started == ["a", "b"]
    assert handle.interrupted == handle.ids[:1]


def test_a_run_that_is_refused_is_told_and_the_shell_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    handle = Handle(TooManyRuns("64 runs wait", hint="wait"), None)

    talk(handle, "a", "b")

    assert handle.started == ["a", "b"]
    assert capsys.readouterr().err == "error: 64 runs wait\nhint: wait\n"


def test_a_session_that_is_gone_ends_the_shell() -> None:
    with pytest.raises(SessionNotFound):
        talk(Handle(SessionNotFound("it is gone")), "a", "b")
