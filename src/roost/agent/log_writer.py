"""The one thread of a node that writes its run logs where that takes long, and syncs what was written.

What is short is in the page cache before that thread would wake up, so whoever appends it writes it.
"""

import asyncio
import contextlib
import math
import os
import queue
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

SYNC_AFTER_S = 1.0
SHORT_BYTES = 64 << 10


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
