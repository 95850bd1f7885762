"""The run log of one session: what its runs did, in segment files that outlive every process of ours.

A record is a header and a payload; a torn tail is cut when the log is opened. Above its cap a log loses its oldest
segments whole; what must stay of them is in a small file beside, `NNNNNN.head`, named after the last one that is gone.
One thread for all sessions writes what is long and syncs what was written; what is short is in the page cache before
that thread would wake up.
"""

import asyncio
import contextlib
import math
import os
import queue
import struct
import threading
import time
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from roost.agent.runs import EVENTS, KEPT, TEXT, Kind
from roost.wire.runs import Event

SEGMENT_BYTES = 8 << 20
CAP_BYTES = 1 << 30
SEGMENTS = 8
"""A log under its cap has room for as many segments at least."""
TAIL_BYTES = 256 << 10
SYNC_AFTER_S = 1.0
SHORT_BYTES = 64 << 10

HEADER = struct.Struct("<IIIQQdB3x")
"""payload length, crc32 of the rest, run, seq, frame, unix time, kind"""
HEADER_START = struct.Struct("<II")
HEADER_REST = struct.Struct("<IQQdB3x")
"""the two halves of `HEADER`"""
_SUMMED_FROM = HEADER_START.size

T = TypeVar("T")


class Record(NamedTuple):
    """One entry of the log."""

    run: int
    seq: int
    """Dense from 1 in its run; 0 for records that are no events."""
    frame: int
    """The runner's counter, 0 for the agent's own records."""
    at: float
    kind: Kind
    payload: bytes

    def encode(self) -> tuple[bytes, bytes]:
        """Header and payload as they stand in the log, one behind the other."""
        run, seq, frame, at, kind, payload = self
        rest = HEADER_REST.pack(run, seq, frame, at, kind)
        return HEADER_START.pack(len(payload), zlib.crc32(payload, zlib.crc32(rest))) + rest, payload

    def event(self) -> Event:
        """The record as readers see it."""
        kind = EVENTS[self.kind]
        if self.kind in TEXT:
            return Event(self.seq, kind, self.payload.decode("utf-8", "replace"))
        return Event(self.seq, kind, msgspec.json.decode(self.payload))


def decode(buffer: bytes, offset: int = 0) -> tuple[Record, int] | None:
    """The record at an offset and the offset behind it, or None where there is no whole and sound one."""
    if len(buffer) < offset + HEADER.size:
        return None
    length: int = HEADER_START.unpack_from(buffer, offset)[0]
    start, end = offset + HEADER.size, offset + HEADER.size + length
    if len(buffer) < end:
        return None
    record = _decoded(buffer[offset:start], buffer[start:end])
    return (record, end) if record is not None else None


def _decoded(header: bytes, payload: bytes) -> Record | None:
    length, crc, run, seq, frame, at, kind = HEADER.unpack(header)
    if length != len(payload) or zlib.crc32(payload, zlib.crc32(header[_SUMMED_FROM:])) != crc:
        return None
    try:
        return Record(run, seq, frame, at, Kind(kind), payload)
    except ValueError:
        return None


class _Write(NamedTuple):
    descriptor: int
    data: bytes
    offset: int
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


_WAKE = object()


class LogWriter:
    """Appends to the logs of a node. `fdatasync` follows within a second, not awaited."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._queued: Counter[int] = Counter()
        self._unsynced: set[int] = set()
        self._thread = threading.Thread(target=self._work, name="run-log-writer", daemon=True)
        self._thread.start()

    def append_short(self, descriptor: int, data: bytes, offset: int) -> bool:
        """Write at a file's end, if that is short; the bytes then survive the end of every process of ours.

        Returns:
            False where nothing was done, because it is a matter for `append`.

        Raises:
            OSError: the disk did not take it all, and keeps nothing of it.
        """
        # Nothing may overtake what is queued for its file, also where nobody waits for that any more.
        if len(data) > SHORT_BYTES or self._queued.get(descriptor):
            return False
        _write_all(descriptor, data, offset)
        if self._note_written(descriptor):
            self._queue.put(_WAKE)
        return True

    async def append(self, descriptor: int, data: bytes, offset: int) -> None:
        """The same for what may be long."""
        with self._lock:
            self._queued[descriptor] += 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Write(descriptor, data, offset, done, loop))
        await done

    def close(self) -> None:
        """Write what is queued, sync, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        sync_at = math.inf
        while True:
            left = sync_at - time.monotonic()
            if left <= 0:
                self._sync()
                sync_at = math.inf
                continue
            try:
                job = self._queue.get(timeout=left if left < math.inf else None)
            except queue.Empty:
                continue
            if job is None:
                self._sync()
                return
            if job is not _WAKE:
                self._write(job)
            sync_at = min(sync_at, time.monotonic() + SYNC_AFTER_S)

    def _write(self, write: _Write) -> None:
        error: OSError | None = None
        try:
            _write_all(write.descriptor, write.data, write.offset)
        except OSError as caught:
            error = caught
        self._note_written(write.descriptor)
        with self._lock:
            self._queued[write.descriptor] -= 1
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            write.loop.call_soon_threadsafe(_settle, write.done, error)

    def _note_written(self, descriptor: int) -> bool:
        """Have it synced; whether it is the first that waits for that."""
        with self._lock:
            is_first = not self._unsynced
            self._unsynced.add(descriptor)
            return is_first

    def _sync(self) -> None:
        with self._lock:
            descriptors, self._unsynced = self._unsynced, set()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # closed since: closing a log syncs it
                os.fdatasync(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    try:
        written = os.pwrite(descriptor, data, offset)
        while written < len(data):
            written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)
    except OSError:
        # The next record must not come behind half of this one, nor may any of it be read again.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, offset)
        raise


def _settle(done: asyncio.Future[None], error: OSError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


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


@dataclass
class _Segment:
    """What is known of one segment without reading it."""

    size: int = 0
    acceptances: list[int] = field(default_factory=list)
    """Their places."""
    kept: list[tuple[int, int]] = field(default_factory=list)
    """Run and seq of the events that outlive it."""
    spans: dict[int, list[_Gap]] = field(default_factory=dict)
    """The other events, by run: what will be missing."""

    def note(self, record: Record) -> None:
        if record.kind in KEPT:
            self.kept.append((record.run, record.seq))
        else:
            _extend(self.spans.setdefault(record.run, []), _Gap(record.seq, record.seq, len(record.payload)))


@dataclass
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
        self._segments: dict[int, _Segment] = {}
        self._descriptors: dict[int, int] = {}
        self._places: dict[int, _Places] = {}
        self._gaps: dict[int, list[_Gap]] = {}
        self._kept: dict[tuple[int, int], Record] = {}
        """Events that outlived their segment."""
        self._cursors: dict[int, Record] = {}
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
            self._segment, offset = _number(path), 0
            segment = self._segments[self._segment] = _Segment()
            descriptor = self._descriptor(self._segment)
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            while (found := decode(content, offset)) is not None:
                record, end = found
                self._note(record, offset)
                offset = end
                yield record
            if offset < len(content):
                os.ftruncate(descriptor, offset)
            segment.size = offset

    def _open_head(self) -> Iterator[Record]:
        """What is left of the segments that are gone; completes what a crash has left half done."""
        heads = sorted(self._folder.glob("*.head"), key=_number)
        self._gone = _number(heads[-1]) if heads else 0
        for path in self._folder.iterdir():
            is_gone = path.suffix == ".seg" and _number(path) <= self._gone
            if is_gone or path.suffix == ".new" or path in heads[:-1]:
                path.unlink()
        for record in self._read_head():
            if record.kind is Kind.CURSOR:
                self._cursors[record.run] = record
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
        if self._segments[self._segment].size >= self._segment_bytes:
            self._segment += 1
            self._segments[self._segment] = _Segment()
        segment = self._segments[self._segment]
        if segment.size == 0 and self._segment > 1:
            records = [Record(0, 0, 0, time.time(), Kind.CHECKPOINT, self._checkpoint()), *records]
        data = b"".join([piece for record in records for piece in record.encode()])
        if self._writer.append_short(self._descriptor(self._segment), data, segment.size):
            self._follow(records, then)
        else:
            await to_its_end(self._append_long(data, records, then))

    async def _append_long(self, data: bytes, records: Sequence[Record], then: Callable[[], object]) -> None:
        await self._writer.append(self._descriptor(self._segment), data, self._segments[self._segment].size)
        self._follow(records, then)

    def _follow(self, records: Sequence[Record], then: Callable[[], object]) -> None:
        segment = self._segments[self._segment]
        for record in records:
            self._note(record, segment.size)
            segment.size += HEADER.size + len(record.payload)
        then()

    @property
    def is_too_long(self) -> bool:
        """Whether there is something to trim."""
        return self._size() > self._cap_bytes and len(self._segments) > 1

    def _size(self) -> int:
        return self._head_size + sum([segment.size for segment in self._segments.values()])

    async def trim(self) -> None:
        """Let the oldest segments go while the log is longer than its cap; not together with `append`.

        If the caller is cancelled, when it is done.

        Raises:
            OSError: what has to stay of them could not be written down; the log is as it was.
        """
        total, going = self._size(), []
        for number, segment in self._segments.items():
            if total <= self._cap_bytes or number == self._segment:
                break
            going.append(number)
            total -= segment.size
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
        place = self._segment << 32 | offset
        segment = self._segments[self._segment]
        if record.seq == 0:
            if record.kind is Kind.CURSOR:
                self._cursors[record.run] = record
            elif record.kind is Kind.ACCEPTED:
                segment.acceptances.append(place)
            return
        segment.note(record)
        if (places := self._places.get(record.run)) is None:
            places = self._places[record.run] = _Places()
        places.at.append(place)
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
        record = _decoded(header, payload)
        if record is None:
            raise OSError(f"the run log in {self._folder} is damaged at segment {place >> 32}, byte {offset}")
        return record

    # Segments that go

    def _let_go(self, going: Sequence[int]) -> None:
        """Write what stays of segments into a new head, which takes its place by its name, then remove them."""
        segments = [self._segments[number] for number in going]
        acceptances = [record for record in self._read_head() if record.kind is Kind.ACCEPTED]
        acceptances += [self._load(place) for segment in segments for place in segment.acceptances]
        kept, bases = dict(self._kept), {run: places.base for run, places in self._places.items()}
        gaps = {run: list(those) for run, those in self._gaps.items()}
        for segment in segments:
            for run, seq in segment.kept:
                kept[run, seq] = self._find(run, seq)
                bases[run] = max(bases[run], seq)
            for run, spans in segment.spans.items():
                bases[run] = max(bases[run], spans[-1].last)
                for span in spans:
                    _extend(gaps.setdefault(run, []), span)
        events = [*kept.values(), *(_gap_record(run, gap) for run, those in gaps.items() for gap in those)]
        events.sort(key=lambda record: (record.run, record.seq))
        accepted = {record.run for record in acceptances}
        cursors = [record for run, record in self._cursors.items() if run in accepted]
        self._write_head(going[-1], [*acceptances, *events, *cursors])
        with self._lock:
            self._kept, self._gaps, self._gone = kept, gaps, going[-1]
            for run, base in bases.items():
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


def encode_json(value: Any) -> bytes:
    """The payload of every record that is not text."""
    return msgspec.json.encode(value)
