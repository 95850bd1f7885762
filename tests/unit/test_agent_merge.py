"""Pieces of one stream that come together are one event."""

from hypothesis import given
from hypothesis import strategies as st

from roost.agent.runs import Acceptance, Kind, LogEntry, Run, merge
from roost.runner.protocol import MAX_OUTPUT

RUNS = [Run(number, Acceptance(run_id=str(number), code="", mode="query", echo=True, at=0.0)) for number in range(2)]


def entries(parts: list[tuple[int, Kind, bytes]]) -> list[LogEntry]:
    return [(RUNS[run], kind, payload, payload, frame) for frame, (run, kind, payload) in enumerate(parts, 1)]


def test_neighbours_of_one_stream_are_one_event_with_the_last_frame() -> None:
    out, err, result = Kind.STDOUT, Kind.STDERR, Kind.RESULT
    parts = [(0, out, b"a"), (0, out, b"b"), (0, err, b"c"), (0, out, b"d"), (1, out, b"e"), (1, result, b"{}")]

    found = [(run.number, kind, payload, frame) for run, kind, _, payload, frame in merge(entries(parts))]

    assert found == [(0, out, b"ab", 2), (0, err, b"c", 3), (0, out, b"d", 4), (1, out, b"e", 5), (1, result, b"{}", 6)]


@given(st.lists(st.integers(1, MAX_OUTPUT), max_size=30))
def test_an_event_is_as_long_as_it_may_be_and_nothing_is_lost(sizes: list[int]) -> None:
    merged = merge(entries([(0, Kind.STDOUT, bytes(size)) for size in sizes]))
    lengths = [len(payload) for *_, payload, _ in merged]

    assert sum(lengths) == sum(sizes)
    assert all(length <= MAX_OUTPUT for length in lengths)
    assert [frame for *_, frame in merged][-1:] == [len(sizes)][: len(sizes)]
