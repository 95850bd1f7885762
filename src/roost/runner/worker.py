"""The runner's view of the processes that work for it: kernels, which last, and those that work off one batch run."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from _socket import socketpair
from importlib import import_module

from . import system
from .codec import from_json, to_ascii_json
from .poller import READ, WRITE, Poller
from .protocol import LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, Callable, NoReturn
else:
    import _signal as signal

# A worker escapes what is not ASCII, so its words are longer than the frames that they become.
_MAX_WORD = 8 << 20
AT_ONCE = 65_536
"""What one read takes of what a worker says."""
_INT = struct.Struct("i")

BATCH = "batch"
DRIVERS = {"python": "kernel", "shell": "shell", BATCH: "batch"}
"""What a worker is by the name of its driver: the module whose `main` it executes.

That of a kernel is its language. A `main` takes the descriptors of the control socket, the sync socket and the two
pipes, and `Settings`; it never returns.
"""

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


class GarbageError(Exception):
    """A worker said something that it cannot say: user code wrote to its socket."""


class ClosedError(GarbageError):
    """A worker closed its socket."""


class Settings:
    """What a worker needs to know of its session."""

    def __init__(self, home: str, environ: dict[str, str], language: str, program: str) -> None:
        self.home = home
        self.environ = environ
        self.language = language
        self.program = program


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
        held: int = _INT.unpack(fcntl.ioctl(self.reader, termios.FIONREAD, bytes(4)))[0]
        return held


class Worker:
    """One process of ours that executes what users send."""

    def __init__(self, driver: str, streams: tuple[Stream, Stream], settings: Settings) -> None:
        self.driver = driver
        self.control, control = socketpair()
        self.sync, sync = socketpair()
        try:
            self.pid = os.fork()
            if self.pid == 0:
                out, err = streams
                _become(driver, control.fileno(), sync.fileno(), out.writer, err.writer, settings)
        except OSError:
            self.control.close()
            self.sync.close()
            raise
        finally:
            control.close()
            sync.close()
        self.control.setblocking(False)
        self.sync.setblocking(False)
        self.status: int | None = None
        self.channel: str | None = None
        self.cpu_seconds = 0.0
        self.reported = 0.0
        self.used = False
        self.closed = False
        self.sync_open = True
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._reading = False
        self._events = 0

    def register(
        self,
        selector: Poller,
        on_control: Callable[[Worker, int], None],
        on_sync: Callable[[Worker], None],
        listening: bool,
    ) -> None:
        self._selector = selector
        self._on_control: Callable[[int], None] = lambda events: on_control(self, events)
        self._on_sync: Callable[[int], None] = lambda _events: on_sync(self)
        self.listen(listening)

    def listen(self, listening: bool) -> None:
        """Whether to hear what it says; what is written to it goes out in any case."""
        if self.closed or listening == self._reading:
            return
        self._reading = listening
        if self.sync_open:
            if listening:
                self._selector.register(self.sync, READ, self._on_sync)
            else:
                self._selector.unregister(self.sync)
        self._update()

    def send(self, word: dict[str, Any]) -> None:
        if self.closed:
            return
        data = to_ascii_json(word)
        self._outbox += LENGTH.pack(len(data)) + data
        self.flush()

    def flush(self) -> None:
        try:
            del self._outbox[: self.control.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()  # it is dying; SIGCHLD says so
        self._update()

    def receive(self) -> list[dict[str, Any]]:
        try:
            data = self.control.recv(AT_ONCE)
        except BlockingIOError:
            return []
        if not data:
            raise ClosedError
        inbox = self._inbox
        inbox += data
        words = []
        while len(inbox) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(inbox)
            if length > _MAX_WORD:
                raise GarbageError("too long")
            end = LENGTH.size + length
            if len(inbox) < end:
                break
            word = from_json(bytes(inbox[LENGTH.size : end]))
            if not isinstance(word, dict):
                raise GarbageError("no object")
            words.append(word)
            del inbox[:end]
        return words

    def unread(self) -> int:
        if self.closed:
            return 0
        held: int = _INT.unpack(fcntl.ioctl(self.control, termios.FIONREAD, bytes(4)))[0]
        return held

    def is_dying(self) -> bool:
        """Whether it ends by itself, so that a broken conversation proves nothing."""
        return self.status is not None or system.is_exiting(self.pid)

    def kill(self) -> None:
        """Kill it; with it what it started, unless it is a Python kernel, whose children are the user's own."""
        self._signal(signal.SIGKILL, everything=self.driver != "python")

    def interrupt(self) -> None:
        self._signal(signal.SIGINT, everything=False)

    def _signal(self, number: int, everything: bool) -> None:
        # Once reaped the number may be somebody else's.
        if self.status is None:
            try:
                if everything:
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)
            except OSError:
                pass

    def close(self) -> None:
        if self.closed:
            return
        self.listen(False)
        self._outbox.clear()
        self._update()
        self.closed = True
        self.control.close()
        self.sync.close()

    def _update(self) -> None:
        wanted = READ if self._reading else 0
        wanted |= WRITE if self._outbox else 0
        if wanted == self._events:
            return
        if not self._events:
            self._selector.register(self.control, wanted, self._on_control)
        elif not wanted:
            self._selector.unregister(self.control)
        else:
            self._selector.modify(self.control, wanted, self._on_control)
        self._events = wanted


def _become(driver: str, *arguments: Any) -> NoReturn:
    """What only this worker needs is imported by it, while the runner already answers."""
    try:
        import_module("." + DRIVERS[driver], __package__).main(*arguments)
    finally:
        os._exit(1)
