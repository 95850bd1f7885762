"""The run log on disk."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.agent.journal import BLOCK_BYTES, SEGMENT_BYTES, TAIL_BYTES, Journal
from roost.agent.log_format import HEADER, Record
from roost.agent.log_writer import SHORT_BYTES, LogWriter
from roost.agent.runs import Kind

NOON = 1_795_500_000.0


def a_record(seq: int, payload: bytes = b"x", run: int = 1) -> Record:
    return Record(run, seq, seq, NOON, Kind.STDOUT, payload)


@pytest.fixture
def writer() -> Iterator[LogWriter]:
    writer = LogWriter()
    yield writer
    writer.close()


def opened(folder: Path, writer: LogWriter) -> tuple[Journal, list[Record]]:
    journal = Journal(folder, writer)
    return journal, list(journal.open())


async def test_what_was_appended_is_there_after_opening_again(tmp_path: Path, writer: LogWriter) -> None:
    records = [a_record(seq, f"line {seq}\n".encode()) for seq in range(1, 101)]
    journal, _ = opened(tmp_path, writer)
    await journal.append(records[:60])
    await journal.append(records[60:])
    journal.close()

    again, found = opened(tmp_path, writer)

    assert found == records
    assert again.read(1, after=97, upto=100, max_bytes=1000) == records[97:]
    again.close()


@pytest.mark.parametrize("size", [10, SHORT_BYTES + 1], ids=["short", "long"])
async def test_who_is_cancelled_hears_of_it_when_what_follows_from_the_record_is_done(
    tmp_path: Path, writer: LogWriter, size: int
) -> None:
    record = a_record(1, b"x" * size)
    journal, _ = opened(tmp_path, writer)
    followed: list[int] = []
    appending = asyncio.create_task(journal.append([record], lambda: followed.append(1)))
    await asyncio.sleep(0)  # it has begun

    appending.cancel()
    await asyncio.wait([appending])

    assert followed == [1]
    assert journal.read(1, after=0, upto=1, max_bytes=1) == [record]
    journal.close()
    again, found = opened(tmp_path, writer)
    assert found == [record]
    again.close()


@pytest.mark.parametrize("around", [0, BLOCK_BYTES, 3 * BLOCK_BYTES])
async def test_a_log_is_read_block_by_block(tmp_path: Path, writer: LogWriter, around: int) -> None:
    sizes = [around + more for more in (0, 1, -HEADER.size, -HEADER.size - 1, -1, 7) if around + more >= 0]
    records = [a_record(seq, b"x" * size) for seq, size in enumerate(sizes * 3, 1)]
    journal, _ = opened(tmp_path, writer)
    for record in records:
        await journal.append([record])
    journal.close()

    again, found = opened(tmp_path, writer)
    again.close()

    assert found == records


@pytest.mark.parametrize("torn", [1, 5, 40])
async def test_a_torn_tail_is_cut(tmp_path: Path, writer: LogWriter, torn: int) -> None:
    journal, _ = opened(tmp_path, writer)
    await journal.append([a_record(1, b"whole"), a_record(2, b"torn")])
    journal.close()
    [segment] = tmp_path.glob("*.seg")
    os.truncate(segment, segment.stat().st_size - torn)

    again, found = opened(tmp_path, writer)
    await again.append([a_record(2, b"new")])
    again.close()

    assert found == [a_record(1, b"whole")]
    last, records = opened(tmp_path, writer)
    last.close()
    assert records == [a_record(1, b"whole"), a_record(2, b"new")]


async def test_what_could_not_be_written_is_neither_read_nor_in_the_way(
    tmp_path: Path, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. one record is whole; 2. the disk takes half of the next, then is full; 3. there is space, and a third fits."""
    journal, _ = opened(tmp_path, writer)
    await journal.append([a_record(1, b"whole")])
    pwrite = os.pwrite

    def pwrite_half(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) < 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[:-10], offset)

    monkeypatch.setattr(os, "pwrite", pwrite_half)
    with pytest.raises(OSError, match="No space left"):
        await journal.append([a_record(2, b"x" * 30), a_record(3, b"y" * 30)])
    refused = journal.read(1, after=1, upto=3, max_bytes=1000)
    monkeypatch.undo()
    await journal.append([a_record(2, b"third")])

    assert refused == []
    assert journal.read(1, after=0, upto=3, max_bytes=1000) == [a_record(1, b"whole"), a_record(2, b"third")]
    journal.close()
    again, found = opened(tmp_path, writer)
    assert found == [a_record(1, b"whole"), a_record(2, b"third")]
    again.close()


async def test_events_beyond_the_cache_are_read_from_several_segments(tmp_path: Path, writer: LogWriter) -> None:
    payload = bytes(64 << 10)
    count = SEGMENT_BYTES // len(payload) + TAIL_BYTES // len(payload) + 10
    journal, _ = opened(tmp_path, writer)
    for seq in range(1, count + 1):
        await journal.append([a_record(seq, payload)])

    assert not journal.is_cached(1, 0)
    assert journal.is_cached(1, count - 1)
    assert [record.seq for record in journal.read(1, 0, count, 1 << 40)] == list(range(1, count + 1))
    assert len(list(tmp_path.glob("*.seg"))) == 2
    journal.close()


async def test_a_page_has_one_event_at_least_and_ends_at_its_size(tmp_path: Path, writer: LogWriter) -> None:
    journal, _ = opened(tmp_path, writer)
    await journal.append([a_record(seq, b"x" * 100) for seq in range(1, 11)])

    assert [record.seq for record in journal.read(1, 0, 10, max_bytes=1)] == [1]
    assert [record.seq for record in journal.read(1, 0, 10, max_bytes=250)] == [1, 2]
    journal.close()
