"""The run log of one session: what its runs did, in segment files that outlive every process of ours.

A record is a header and a payload; a torn tail is cut when the log is opened. One thread for all sessions writes what
is long and syncs what was written; what is short is in the page cache before that thread would wake up.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from roost.agent.runs import EVENTS, TEXT, Kind
from roost.wire.runs import Event

SEGMENT_BYTES = 8 << 20
TAIL_BYTES = 256 << 10
SYNC_AFTER_S = 1.0
SHORT_BYTES = 64 << 10

HEADER = struct.Struct("<IIIQQdB3x")
"""payload length, crc32 of the rest, run, seq, frame, unix time, kind"""


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

    def encode(self) -> bytes:
        body = HEADER.pack(len(self.payload), 0, self.run, self.seq, self.frame, self.at, self.kind)[8:] + self.payload
        return struct.pack("<II", len(self.payload), zlib.crc32(body)) + body

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
    length, crc, run, seq, frame, at, kind = HEADER.unpack_from(buffer, offset)
    end = offset + HEADER.size + length
    if len(buffer) < end or zlib.crc32(memoryview(buffer)[offset + 8 : end]) != crc:
        return None
    try:
        return Record(run, seq, frame, at, Kind(kind), buffer[offset + HEADER.size : end]), end
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

    async def append(self, descriptor: int, data: bytes, offset: int) -> None:
        """Write at a file's end; once this returns the bytes survive the end of every process of ours.

        Raises:
            OSError: the disk did not take it all, and keeps nothing of it.
        """
        with self._lock:
            # Nothing may overtake what is queued for its file, also where nobody waits for that any more.
            is_direct = len(data) <= SHORT_BYTES and not self._queued[descriptor]
            if not is_direct:
                self._queued[descriptor] += 1
        if is_direct:
            _write_all(descriptor, data, offset)
            if self._note_written(descriptor):
                self._queue.put(_WAKE)
            return
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
    rest, end = memoryview(data), offset
    try:
        while rest:
            written = os.pwrite(descriptor, rest, end)
            rest, end = rest[written:], end + written
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


class Journal:
    """The segments of one session, an index of their events, and a cache of the newest."""

    def __init__(self, folder: Path, writer: LogWriter) -> None:
        self._folder = folder
        self._writer = writer
        self._segment = 0
        self._size = 0
        self._descriptors: dict[int, int] = {}
        self._index: dict[int, array[int]] = {}
        """run → for each seq from 1 its segment << 32 | offset"""
        self._tail: deque[Record] = deque()
        self._tail_bytes = 0
        self._cached: dict[tuple[int, int], Record] = {}

    def open(self) -> Iterator[Record]:
        """Open or make the log; yields every record that it holds. Must be read to its end."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = sorted(self._folder.glob("*.seg")) or [self._name(1)]
        for path in names:
            self._segment, offset = int(path.stem), 0
            descriptor = self._descriptor(self._segment)
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            while (found := decode(content, offset)) is not None:
                record, end = found
                self._note(record, offset)
                offset = end
                yield record
            if offset < len(content):
                os.ftruncate(descriptor, offset)
            self._size = offset

    async def append(self, records: list[Record]) -> None:
        """Append records in their order; readers may be woken once this returns.

        One call at a time, and none may be cancelled while it writes.

        Raises:
            OSError: the disk did not take them; the log is as it was.
        """
        if self._size >= SEGMENT_BYTES:
            self._segment, self._size = self._segment + 1, 0
        data = bytearray()
        offsets = []
        for record in records:
            offsets.append(self._size + len(data))
            data += record.encode()
        await self._writer.append(self._descriptor(self._segment), bytes(data), self._size)
        self._size += len(data)
        for record, offset in zip(records, offsets, strict=True):
            self._note(record, offset)

    def read(self, run: int, after: int, upto: int, max_bytes: int) -> list[Record]:
        """Events of a run behind `after` and up to `upto`; at least one where there is any. May read the disk."""
        found: list[Record] = []
        size = 0
        for seq in range(after + 1, min(upto, len(self._index.get(run, ()))) + 1):
            record = self._cached.get((run, seq)) or self._load(self._index[run][seq - 1])
            size += len(record.payload)
            if found and size > max_bytes:
                break
            found.append(record)
        return found

    def is_cached(self, run: int, after: int) -> bool:
        """Whether reading behind `after` needs no disk."""
        return after >= len(self._index.get(run, ())) or (run, after + 1) in self._cached

    def close(self) -> None:
        """Sync and close every segment."""
        for descriptor in self._descriptors.values():
            os.fdatasync(descriptor)
            os.close(descriptor)
        self._descriptors.clear()

    def _note(self, record: Record, offset: int) -> None:
        if record.seq == 0:
            return
        self._index.setdefault(record.run, array("Q")).append(self._segment << 32 | offset)
        self._cached[record.run, record.seq] = record
        self._tail.append(record)
        self._tail_bytes += len(record.payload) + HEADER.size
        while self._tail_bytes > TAIL_BYTES:
            oldest = self._tail.popleft()
            self._tail_bytes -= len(oldest.payload) + HEADER.size
            del self._cached[oldest.run, oldest.seq]

    def _load(self, place: int) -> Record:
        descriptor, offset = self._descriptor(place >> 32), place & 0xFFFFFFFF
        header = os.pread(descriptor, HEADER.size, offset)
        length: int = HEADER.unpack(header)[0]
        found = decode(header + os.pread(descriptor, length, offset + HEADER.size))
        if found is None:
            raise OSError(f"the run log in {self._folder} is damaged at segment {place >> 32}, byte {offset}")
        return found[0]

    def _descriptor(self, segment: int) -> int:
        if segment not in self._descriptors:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptors[segment] = os.open(self._name(segment), flags, 0o600)
        return self._descriptors[segment]

    def _name(self, segment: int) -> Path:
        return self._folder / f"{segment:06}.seg"


def encode_json(value: Any) -> bytes:
    """The payload of every record that is not text."""
    return msgspec.json.encode(value)
