"""When the runner waits for a pipe of the kernel, and when it looks at it now and then instead."""

import os
from collections.abc import Iterator

import pytest

from roost.runner.pipes import ALONE_S, PACE_S, PACED_BYTES, Stream
from roost.runner.protocol import Kind

NOW = 1000.0
SOON = PACE_S / 2
LONG_AGO = NOW - 60


@pytest.fixture
def stream() -> Iterator[Stream]:
    stream = Stream(Kind.STDOUT)
    yield stream
    os.close(stream.reader)
    os.close(stream.writer)


def pace(stream: Stream, count: int, *, now: float = NOW, before: float = NOW - SOON, other: float = LONG_AGO) -> bool:
    stream.pace(count, now, before, other)
    return stream.is_paced


def test_what_comes_once_is_waited_for(stream: Stream) -> None:
    assert not pace(stream, 100, before=LONG_AGO)


def test_a_steady_output_of_small_pieces_is_paced_until_it_pauses(stream: Stream) -> None:
    assert pace(stream, 100)
    assert pace(stream, 100, now=NOW + 2 * PACE_S, before=NOW)
    assert not pace(stream, 0, now=NOW + 4 * PACE_S, before=NOW + 2 * PACE_S)


def test_a_pipe_that_fills_quickly_is_waited_for(stream: Stream) -> None:
    assert not pace(stream, PACED_BYTES)


def test_streams_that_are_written_to_in_turns_are_waited_for(stream: Stream) -> None:
    assert not pace(stream, 100, other=NOW - ALONE_S / 2)
    assert pace(stream, 100, other=NOW - ALONE_S)
