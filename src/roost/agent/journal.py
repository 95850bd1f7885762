"""The run log of one session: what its runs did, in segment files that outlive every process of ours.

A torn tail is cut when the log is opened. Above its cap a log loses its oldest segments whole; what must stay of them
is in a small file beside, `NNNNNN.head`, named after the last one that is gone.
"""

import asyncio
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from roost.agent.log_format import HEADER, HEADER_START, Record, decode, decode_parts, encode_json
from roost.agent.log_writer import LogWriter
from roost.agent.runs import KEPT, Kind

SEGMENT_BYTES = 8 << 20
CAP_BYTES = 1 << 30
SEGMENTS = 8
"""A log under its cap has room for as many segments at least."""
TAIL_BYTES = 256 << 10
BLOCK_BYTES = 128 << 10
"""As much of a segment is read at a time, unless a record is longer."""

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do work that must not be left half done; if the caller is cancelled, it hears of it when the work is done."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Gap(NamedTuple):
    """Events of one run that are gone, and their payloads' size."""

    first: int
    last: int
    size: int


@dataclass(slots=True)
class _Places:
    """Where the events of one run are: those behind `base`, each as its segment << 32 | offset."""

    base: int = 0
    at: "array[int]" = field(default_factory=lambda: array("Q"))

    @property
    def last(self) -> int:
        return self.base + len(self.at)


class Journal:
    """The segments of one session, an index of their events, and a cache of the newest.

    Args:
        checkpoint: the state of the runs so far, as the payload of a record that begins each segment but the first.
    """

    def __init__(
        self,
        folder: Path,
        writer: LogWriter,
        cap_bytes: int = CAP_BYTES,
        checkpoint: Callable[[], bytes] = lambda: b"{}",
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._cap_bytes = cap_bytes
        self._segment_bytes = min(SEGMENT_BYTES, cap_bytes // SEGMENTS)
        self._checkpoint = checkpoint
        self._segment = 0
        self._gone = 0
        """The last segment that is gone."""
        self._head_size = 0
        self._segments: dict[int, int] = {}
        """Their sizes; the newest is the last."""
        self._descriptors: dict[int, int] = {}
        self._places: dict[int, _Places] = {}
        self._gaps: dict[int, list[_Gap]] = {}
        self._kept: dict[tuple[int, int], Record] = {}
        """Events that outlived their segment."""
        self._tail: deque[Record] = deque()
        self._tail_bytes = 0
        self._cached: dict[tuple[int, int], Record] = {}
        self._lock = threading.Lock()
        """Held to look an event up, and to change what is gone: pages are read in threads."""
        self._readers = 0
        self._retired: list[int] = []
        """Segments that are gone, and open until nobody reads."""

    def open(self) -> Iterator[Record]:
        """Open or make the log; yields every record that it holds. Must be read to its end."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield from self._open_head()
        names = sorted(self._folder.glob("*.seg"), key=_number) or [self._name(self._gone + 1)]
        for path in names:
            self._segment, size = _number(path), 0
            for record, end in self._records(self._segment):
                self._note(record, size)
                size = end
                yield record
            descriptor = self._descriptor(self._segment)
            if size < os.fstat(descriptor).st_size:
                os.ftruncate(descriptor, size)
            self._segments[self._segment] = size

    def _records(self, segment: int) -> Iterator[tuple[Record, int]]:
        """The records of a segment up to the first that is not whole and sound, each with the offset behind it."""
        descriptor = self._descriptor(segment)
        block, start, end = b"", 0, 0
        while True:
            found = decode(block, end - start)
            if found is None:
                block, start = _read_block(descriptor, end), end
                found = decode(block)
                if found is None:
                    return
            record, behind = found
            end = start + behind
            yield record, end

    def _open_head(self) -> Iterator[Record]:
        """What is left of the segments that are gone; completes what a crash has left half done."""
        heads = sorted(self._folder.glob("*.head"), key=_number)
        self._gone = _number(heads[-1]) if heads else 0
        for path in self._folder.iterdir():
            is_gone = path.suffix == ".seg" and _number(path) <= self._gone
            if is_gone or path.suffix == ".new" or path in heads[:-1]:
                path.unlink()
        for record in self._read_head():
            if record.seq:
                self._places.setdefault(record.run, _Places()).base = record.seq
                if record.kind is Kind.GAP:
                    gap = msgspec.json.decode(record.payload)
                    self._gaps.setdefault(record.run, []).append(_Gap(gap["first"], gap["last"], gap["bytes"]))
                else:
                    self._kept[record.run, record.seq] = record
            yield record

    def _read_head(self) -> list[Record]:
        if not self._gone:
            return []
        path = self._folder / f"{self._gone:06}.head"
        content, offset, records = path.read_bytes(), 0, []
        while (found := decode(content, offset)) is not None:
            record, offset = found
            records.append(record)
        if offset < len(content):
            raise OSError(f"the run log in {self._folder} is damaged: {path.name}, byte {offset}")
        self._head_size = offset
        return records

    async def append(self, records: Sequence[Record], then: Callable[[], object] = lambda: None) -> None:
        """Append records in their order, one call at a time.

        Args:
            records: what to append.
            then: what follows from their being in the log; if the caller is cancelled, before it hears of it.

        Raises:
            OSError: the disk did not take them; the log is as it was.
        """
        if self._segments[self._segment] >= self._segment_bytes:
            self._segment += 1
            self._segments[self._segment] = 0
        size = self._segments[self._segment]
        if size == 0 and self._segment > 1:
            records = [Record(0, 0, 0, time.time(), Kind.CHECKPOINT, self._checkpoint()), *records]
        data = b"".join([piece for record in records for piece in record.encode()])
        if self._writer.append_short(self._descriptor(self._segment), data, size):
            self._follow(records, then)
        else:
            await to_its_end(self._append_long(data, records, then))

    async def _append_long(self, data: bytes, records: Sequence[Record], then: Callable[[], object]) -> None:
        await self._writer.append(self._descriptor(self._segment), data, self._segments[self._segment])
        self._follow(records, then)

    def _follow(self, records: Sequence[Record], then: Callable[[], object]) -> None:
        size = self._segments[self._segment]
        for record in records:
            self._note(record, size)
            size += HEADER.size + len(record.payload)
        self._segments[self._segment] = size
        then()

    @property
    def is_too_long(self) -> bool:
        """Whether there is something to trim."""
        return self._size() > self._cap_bytes and len(self._segments) > 1

    def _size(self) -> int:
        return self._head_size + sum(self._segments.values())

    async def trim(self) -> None:
        """Let the oldest segments go while the log is longer than its cap; not together with `append`.

        If the caller is cancelled, when it is done.

        Raises:
            OSError: what has to stay of them could not be written down; the log is as it was.
        """
        total, going = self._size(), []
        for number, size in self._segments.items():
            if total <= self._cap_bytes or number == self._segment:
                break
            going.append(number)
            total -= size
        if going:
            await to_its_end(asyncio.to_thread(self._let_go, going))

    def read(self, run: int, after: int, upto: int, max_bytes: int) -> list[Record]:
        """Events of a run behind `after` and up to `upto`; at least one where there is any. May read the disk.

        Those that are gone are one record of kind `GAP`, whose seq is the last of them.
        """
        found: list[Record] = []
        size = 0
        with self._lock:
            self._readers += 1
        try:
            seq, last = after + 1, min(upto, self._last(run))
            while seq <= last:
                record = self._find(run, seq)
                size += len(record.payload)
                if found and size > max_bytes:
                    break
                found.append(record)
                seq = record.seq + 1
        finally:
            with self._lock:
                self._readers -= 1
                self._close_retired()
        return found

    def is_cached(self, run: int, after: int) -> bool:
        """Whether reading behind `after` needs no disk."""
        return after >= self._last(run) or (run, after + 1) in self._cached

    def close(self) -> None:
        """Sync and close every segment."""
        for descriptor in self._descriptors.values():
            os.fdatasync(descriptor)
            os.close(descriptor)
        self._descriptors.clear()

    def _last(self, run: int) -> int:
        places = self._places.get(run)
        return places.last if places is not None else 0

    def _close_retired(self) -> None:
        while self._retired and not self._readers:
            if (descriptor := self._descriptors.pop(self._retired.pop(), None)) is not None:
                os.close(descriptor)

    def _note(self, record: Record, offset: int) -> None:
        if record.seq == 0:
            return
        if (places := self._places.get(record.run)) is None:
            places = self._places[record.run] = _Places()
        places.at.append(self._segment << 32 | offset)
        self._cached[record.run, record.seq] = record
        self._tail.append(record)
        self._tail_bytes += len(record.payload) + HEADER.size
        while self._tail_bytes > TAIL_BYTES:
            oldest = self._tail.popleft()
            self._tail_bytes -= len(oldest.payload) + HEADER.size
            del self._cached[oldest.run, oldest.seq]

    def _find(self, run: int, seq: int) -> Record:
        with self._lock:
            key = run, seq
            record = self._cached.get(key) or self._kept.get(key)
            if record is not None:
                return record
            places = self._places[run]
            if seq <= places.base:
                gap = next(gap for gap in self._gaps[run] if seq <= gap.last)
                return _gap_record(run, gap._replace(first=seq))
            place = places.at[seq - places.base - 1]
        return self._load(place)

    def _load(self, place: int) -> Record:
        descriptor, offset = self._descriptor(place >> 32), place & 0xFFFFFFFF
        header = os.pread(descriptor, HEADER.size, offset)
        payload = os.pread(descriptor, HEADER_START.unpack_from(header)[0], offset + HEADER.size)
        record = decode_parts(header, payload)
        if record is None:
            raise OSError(f"the run log in {self._folder} is damaged at segment {place >> 32}, byte {offset}")
        return record

    # Segments that go

    def _let_go(self, going: Sequence[int]) -> None:
        """Write what stays of segments into a new head, which takes its place by its name, then remove them."""
        rest = _Rest(dict(self._kept), {run: list(those) for run, those in self._gaps.items()})
        for record in self._read_head():
            if record.seq == 0:
                rest.take(record)
        for number in going:
            end = 0
            for record, end in self._records(number):  # noqa: B007 - the last end counts
                rest.take(record)
            if end < self._segments[number]:
                raise OSError(f"the run log in {self._folder} is damaged at segment {number}, byte {end}")
        self._write_head(going[-1], rest.records())
        with self._lock:
            self._kept, self._gaps, self._gone = rest.kept, rest.gaps, going[-1]
            for run, base in rest.bases.items():
                places = self._places[run]
                del places.at[: base - places.base]
                places.base = base
            for number in going:
                del self._segments[number]
            self._retired += going
            self._close_retired()
        for number in going:
            self._name(number).unlink()

    def _write_head(self, number: int, records: Sequence[Record]) -> None:
        content = b"".join(piece for record in records for piece in record.encode())
        making = self._folder / "head.new"
        with making.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        older = self._folder / f"{self._gone:06}.head"
        making.rename(self._folder / f"{number:06}.head")
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        older.unlink(missing_ok=True)
        self._head_size = len(content)

    def _descriptor(self, segment: int) -> int:
        if segment not in self._descriptors:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptors[segment] = os.open(self._name(segment), flags, 0o600)
        return self._descriptors[segment]

    def _name(self, segment: int) -> Path:
        return self._folder / f"{segment:06}.seg"


class _Rest:
    """What stays of segments that go, of which every record is taken in its order."""

    def __init__(self, kept: dict[tuple[int, int], Record], gaps: dict[int, list[_Gap]]) -> None:
        self.kept = kept
        self.gaps = gaps
        self.bases: dict[int, int] = {}
        """The last event of each run that goes."""
        self._acceptances: list[Record] = []
        self._cursors: dict[int, Record] = {}

    def take(self, record: Record) -> None:
        run, seq = record.run, record.seq
        if record.kind is Kind.ACCEPTED:
            self._acceptances.append(record)
        elif record.kind is Kind.CURSOR:
            self._cursors[run] = record
        elif seq:
            self.bases[run] = seq
            if record.kind in KEPT:
                self.kept[run, seq] = record
            else:
                _extend(self.gaps.setdefault(run, []), _Gap(seq, seq, len(record.payload)))

    def records(self) -> list[Record]:
        """What a head has of them."""
        gaps = [_gap_record(run, gap) for run, those in self.gaps.items() for gap in those]
        events = sorted([*self.kept.values(), *gaps], key=lambda record: (record.run, record.seq))
        return [*self._acceptances, *events, *self._cursors.values()]


def _read_block(descriptor: int, offset: int) -> bytes:
    """Some of a segment from an offset on, with one whole record at least if there is one.

    Not all of it: an allocator keeps for good what it was once asked for.
    """
    header = os.pread(descriptor, HEADER.size, offset)
    size = HEADER.size + HEADER_START.unpack_from(header)[0] if len(header) == HEADER.size else 0
    return os.pread(descriptor, min(max(size, BLOCK_BYTES), os.fstat(descriptor).st_size - offset), offset)


def _extend(gaps: list[_Gap], further: _Gap) -> None:
    """Add a gap behind others; what touches is one."""
    if gaps and gaps[-1].last + 1 == further.first:
        before = gaps.pop()
        further = _Gap(before.first, further.last, before.size + further.size)
    gaps.append(further)


def _gap_record(run: int, gap: _Gap) -> Record:
    payload = encode_json({"first": gap.first, "last": gap.last, "bytes": gap.size})
    return Record(run, gap.last, 0, 0.0, Kind.GAP, payload)


def _number(path: Path) -> int:
    return int(path.stem)
