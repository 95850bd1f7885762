"""A run log that is longer than it may be: the oldest goes, what matters stays, and readers are told."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.agent.journal import SEGMENTS
from roost.agent.log_format import encode_json
from roost.agent.log_writer import LogWriter
from roost.agent.runs import Kind, Run, admit
from roost.agent.session_runs import SessionRuns
from roost.wire.runs import Event, EventKind, RunEnd, RunSpec, RunState, RunStatus

CAP = 1 << 20
PIECE = b"x" * 1023 + b"\n"
MANY = 2 * CAP // len(PIECE)
OK = RunEnd(status=RunStatus.OK, exit_code=0)


@pytest.fixture
def writer() -> Iterator[LogWriter]:
    writer = LogWriter()
    yield writer
    writer.close()


def opened(folder: Path, writer: LogWriter) -> SessionRuns:
    return SessionRuns(folder, writer, cap_bytes=CAP)


async def begun(runs: SessionRuns, run_id: str = "r1") -> Run:
    run, _ = await runs.accept(RunSpec(run_id=run_id, code=f"code of {run_id}"))
    await runs.append(run, Kind.STARTED, None, b'{"state_lost":false}', frame=runs.last_frame + 1)
    return run


async def write(runs: SessionRuns, run: Run, count: int) -> None:
    for _ in range(count):
        await runs.append(run, Kind.STDOUT, None, PIECE, frame=runs.last_frame + 1)


async def ask(runs: SessionRuns, run: Run, number: int) -> None:
    payload = encode_json({"prompt": number, "text": "", "password": False})
    await runs.append(run, Kind.PROMPT, admit(run, Kind.PROMPT, payload), payload, frame=runs.last_frame + 1)


async def end(runs: SessionRuns, run: Run) -> None:
    await runs.append(run, Kind.END, OK, encode_json(OK), frame=runs.last_frame + 1)


async def read(runs: SessionRuns, run_id: str, after: int = 0) -> list[Event]:
    events: list[Event] = []
    while page := (await runs.read(run_id, after=after, max_bytes=1 << 16, wait_s=0)).events:
        events += page
        after = page[-1].seq
    return events


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def test_the_oldest_goes_whole_and_a_reader_is_told_once(tmp_path: Path, writer: LogWriter) -> None:
    runs = opened(tmp_path, writer)
    run = await begun(runs)
    await write(runs, run, MANY)
    await end(runs, run)

    first, gap, *rest = await read(runs, "r1")

    assert (first.seq, first.kind) == (1, EventKind.STARTED)
    assert (gap.kind, gap.data["first"], gap.data["last"], gap.seq) == (EventKind.GAP, 2, gap.seq, gap.data["last"])
    assert gap.data["bytes"] == (gap.seq - 1) * len(PIECE)
    assert [event.seq for event in rest] == list(range(gap.seq + 1, MANY + 3))
    assert {event.kind for event in rest[:-1]} == {EventKind.STDOUT}
    assert rest[-1].kind is EventKind.END
    assert CAP - 2 * CAP // SEGMENTS < size_of(tmp_path) <= CAP + CAP // SEGMENTS
    runs.close()


async def test_a_reader_in_the_middle_of_the_gap_is_told_from_there(tmp_path: Path, writer: LogWriter) -> None:
    runs = opened(tmp_path, writer)
    run = await begun(runs)
    await write(runs, run, MANY)

    whole = (await read(runs, "r1"))[1]
    gap, following, *_ = await read(runs, "r1", after=100)

    assert (gap.data["first"], gap.data["last"]) == (101, whole.seq)
    assert (following.kind, following.seq) == (EventKind.STDOUT, whole.seq + 1)
    runs.close()


async def test_a_run_that_lies_still_while_others_go_goes_on_after_its_gap(tmp_path: Path, writer: LogWriter) -> None:
    runs = opened(tmp_path, writer)
    still = await begun(runs, "still")
    await write(runs, still, MANY)
    before = await read(runs, "still")
    other = await begun(runs, "other")
    await write(runs, other, 3 * MANY)

    await runs.append(still, Kind.STDOUT, None, b"again", frame=runs.last_frame + 1)
    first, gap, *rest = await read(runs, "still")

    assert (first.seq, first.kind) == (1, EventKind.STARTED)
    assert (gap.kind, gap.data["first"], gap.data["last"]) == (EventKind.GAP, 2, before[-1].seq)
    assert [(event.seq, event.data) for event in rest] == [(before[-1].seq + 1, "again")]
    runs.close()


async def test_what_a_log_says_is_the_same_when_it_is_opened_again(tmp_path: Path, writer: LogWriter) -> None:
    """One run ended and is gone but for its ends, one has a cursor, one waits for its second answer."""
    runs = opened(tmp_path, writer)
    old = await begun(runs, "old")
    await end(runs, old)
    long = await begun(runs, "long")
    await write(runs, long, 100)
    await runs.move_cursor(long, 50)
    await end(runs, long)
    waiting = await begun(runs, "waiting")
    await ask(runs, waiting, 1)
    answer: Any = {"prompt": 1, "text": "a"}
    await runs.append(waiting, Kind.INPUT, answer, encode_json(answer))
    await write(runs, waiting, MANY)
    await ask(runs, waiting, 2)
    answer = {"prompt": 2, "text": "b"}
    await runs.append(waiting, Kind.INPUT, answer, encode_json(answer))
    await write(runs, waiting, 2 * MANY)
    told = [(run.copy(), await read(runs, run.acceptance.run_id)) for run in runs.all()]
    frame = runs.last_frame
    runs.close()

    again = opened(tmp_path, writer)

    assert [(run, await read(again, run.acceptance.run_id)) for run in again.all()] == told
    assert again.last_frame == frame
    assert [event.kind for event in told[0][1]] == [EventKind.STARTED, EventKind.END]
    assert [event.kind for event in told[1][1]] == [EventKind.STARTED, EventKind.GAP, EventKind.END]
    assert told[1][0].cursor == 50
    assert (told[2][0].state, told[2][0].prompts, told[2][0].unanswered) == (RunState.RUNNING, 2, {2: "b"})
    await end(again, again.run("waiting"))
    assert [event.kind for event in (await read(again, "waiting"))][-1] is EventKind.END
    again.close()


@pytest.mark.parametrize("call", ["rename", "unlink"])
async def test_a_crash_while_segments_go_loses_nothing_else(
    tmp_path: Path, writer: LogWriter, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """1. the process dies before the new head has its name, or before the segments are removed; 2. it comes back."""
    runs = opened(tmp_path, writer)
    run = await begun(runs)
    await write(runs, run, MANY // 2 - 100)

    def die(*args: Any, **kwargs: Any) -> None:
        raise OSError("died")

    monkeypatch.setattr(Path, call, die)
    await write(runs, run, 200)
    monkeypatch.undo()
    runs.close()
    again = opened(tmp_path, writer)
    run = again.run("r1")
    await write(again, run, MANY)
    await end(again, run)

    first, gap, *rest = await read(again, "r1")

    assert (first.seq, gap.kind, gap.data["first"]) == (1, EventKind.GAP, 2)
    assert [event.seq for event in rest] == list(range(gap.seq + 1, run.last_seq + 1))
    assert run.last_seq == MANY // 2 + 100 + MANY + 2
    assert size_of(tmp_path) <= CAP + CAP // SEGMENTS
    assert len(list(tmp_path.glob("*.head"))) == 1
    assert not list(tmp_path.glob("*.new"))
    again.close()


async def test_segments_that_are_gone_are_closed(tmp_path: Path, writer: LogWriter) -> None:
    runs = opened(tmp_path, writer)
    run = await begun(runs)
    await write(runs, run, 3 * MANY)

    held = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [name for name in held if name.startswith(str(tmp_path)) and name.endswith("(deleted)")]
    runs.close()


async def test_who_has_seen_more_than_is_there_gets_a_gap_and_the_end(tmp_path: Path, writer: LogWriter) -> None:
    runs = opened(tmp_path, writer)
    run = await begun(runs)
    await end(runs, run)

    beyond = await runs.read("r1", after=9, max_bytes=1 << 16, wait_s=10)
    seen_all = await runs.read("r1", after=2, max_bytes=1 << 16, wait_s=10)

    assert [(event.seq, event.kind) for event in beyond.events] == [(9, EventKind.GAP), (2, EventKind.END)]
    assert beyond.events[0].data == {"first": 3, "last": 9, "bytes": 0}
    assert seen_all.events == []
    runs.close()
