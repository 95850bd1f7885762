"""The two pipes that everything in a session writes to, and how the runner reads them."""

from __future__ import annotations

import fcntl
import os
from time import monotonic

from . import system
from .link import Link
from .poller import READ, Poller
from .protocol import MAX_OUTPUT, Kind, utf8_boundary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

PACE_S = 0.002
"""How late the pieces of a steady output may be read."""
ALONE_S = 0.02
"""How long the other stream has to have been quiet for that."""
PIPE_BYTES = 256 << 10
"""What a pipe holds while much is written to it."""
PACED_BYTES = PIPE_BYTES // 2
"""So much within `PACE_S` is waited for after all."""
_USUAL_PIPE_BYTES = 64 << 10
_F_SETPIPE_SZ = 1031  # Linux's; `fcntl` names it since Python 3.10


class Stream:
    """A pipe of the kernel, and the beginning of a character that it has not finished.

    One that small pieces come out of all the time is *paced*: it is not waited for, which would wake the runner for
    every piece, but looked at every `PACE_S`. Nothing is held back in the kernel for that: what was written is in the
    pipe, whatever becomes of its writer.
    """

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.reader, self.writer = os.pipe()
        self.tail = b""
        self.is_paced = False
        self.looked_at = -1.0
        self.came_at = -1.0
        self._is_large = False
        os.set_blocking(self.reader, False)

    def pace(self, count: int, now: float, before: float, other_came_at: float) -> None:
        """Decide how to wait for more.

        Args:
            count: how many bytes were there.
            now: when they were read. All times are monotonic, in seconds.
            before: when bytes came the time before.
            other_came_at: when bytes last came out of the other stream. Whoever writes to two descriptors in turns,
                and is not our kernel, which asks for its order, relies on us to read at once.
        """
        is_steady = self.is_paced or now < before + PACE_S
        is_alone = now >= other_came_at + ALONE_S
        self.looked_at = now
        self.is_paced = 0 < count < PACED_BYTES and is_steady and is_alone
        if is_steady and count:
            self._resize(True)

    def is_due(self, now: float) -> bool:
        """Whether it is paced, and to be looked at."""
        return self.is_paced and now >= self.looked_at + PACE_S

    def relax(self) -> None:
        """Its run has ended."""
        self._resize(False)

    def _resize(self, large: bool) -> None:
        if large == self._is_large:
            return
        try:
            fcntl.fcntl(self.reader, _F_SETPIPE_SZ, PIPE_BYTES if large else _USUAL_PIPE_BYTES)
        except OSError:
            pass  # a user may have only so much in pipes; it goes on as it is
        self._is_large = large

    def size(self) -> int:
        """How many bytes are in it."""
        return system.unread(self.reader)


class Pipes:
    """One pair for all kernels, so that what a dead kernel left behind can still write.

    What is read becomes frames of the run that is current then. Nothing is read beyond what the link has room for.
    """

    def __init__(self, selector: Poller, link: Link, run_number: Callable[[], int]) -> None:
        self._selector = selector
        self._link = link
        self._run_number = run_number
        self._listening = True
        self._watched: list[Stream] = []
        self.out, self.err = Stream(Kind.STDOUT), Stream(Kind.STDERR)
        self._watch()

    def listen(self, listening: bool) -> None:
        """Whether what is written may be read."""
        self._listening = listening
        self._watch()

    def look_at_paced(self) -> None:
        """Read what it is time for."""
        if not self._listening:
            return
        now = monotonic()
        if self.err.is_due(now):
            self._look_at_both()
        elif self.out.is_due(now):
            self._look(self.out)
        self._watch()

    def due_at(self) -> float | None:
        """When the next look is due; None if none is."""
        due = [stream.looked_at + PACE_S for stream in self._both if stream.is_paced and self._listening]
        return min(due, default=None)

    def drain(self, *, wholly: bool = False) -> None:
        """Read what the pipes hold now, and no more: somebody may write without end.

        Args:
            wholly: without looking for room, which has been seen in this round; once for each run.
        """
        held = self.err.size()
        for stream, left in ((self.out, self.out.size()), (self.err, held)):
            while left > 0 and (wholly or self._link.has_room):
                count = self._read(stream, min(MAX_OUTPUT, left))
                if not count:
                    break
                left -= count

    def emit_tails(self) -> None:
        """What began a character that nobody will finish."""
        for stream in self._both:
            if stream.tail:
                self._link.emit(stream.kind, self._run_number(), stream.tail)
                stream.tail = b""

    def relax(self) -> None:
        """A run has ended."""
        for stream in self._both:
            stream.relax()

    @property
    def _both(self) -> tuple[Stream, Stream]:
        return self.out, self.err

    def _watch(self) -> None:
        """Wait for the streams that can wake us, and for no other."""
        lookers = ((self.out, lambda _events: self._look(self.out)), (self.err, lambda _events: self._look_at_both()))
        for stream, look in lookers:
            watched = self._listening and not stream.is_paced
            if watched == (stream in self._watched):
                continue
            if watched:
                self._watched.append(stream)
                self._selector.register(stream.reader, READ, look)
            else:
                self._watched.remove(stream)
                self._selector.unregister(stream.reader)

    def _look(self, stream: Stream, upto: int = PIPE_BYTES) -> None:
        """Read what it holds, as far as there is room, and decide how to wait for more."""
        count, before = 0, stream.came_at
        while self._link.has_room and count < upto:
            wanted = min(MAX_OUTPUT, upto - count)
            size = self._read(stream, wanted)
            count += size
            if size < wanted:
                break
        other = self.err if stream is self.out else self.out
        stream.pace(count, monotonic(), before, other.came_at)

    def _look_at_both(self) -> None:
        """Read stderr, and before it whatever was written to stdout before it."""
        held = self.err.size()
        self._look(self.out)
        self._look(self.err, held)

    def _read(self, stream: Stream, size: int) -> int:
        """Read once; the number of bytes, 0 if there are none."""
        try:
            data = os.read(stream.reader, size)
        except BlockingIOError:
            return 0
        stream.came_at = monotonic()
        self._emit(stream, data)
        return len(data)

    def _emit(self, stream: Stream, data: bytes) -> None:
        data = stream.tail + data
        while data:
            part = data[:MAX_OUTPUT]
            cut = utf8_boundary(part)
            if cut == 0:
                break
            self._link.emit(stream.kind, self._run_number(), part[:cut])
            data = data[cut:]
        stream.tail = data
