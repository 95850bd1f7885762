"""The runner's view of the processes that work for it: kernels, which last, and those that work off one batch run."""

from __future__ import annotations

import os
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

    from .pipes import Pipes
else:
    import _signal as signal

# A worker escapes what is not ASCII, so its words are longer than the frames that they become.
_MAX_WORD = 8 << 20
_ROUNDS = 50
"""How often descendants of a batch run are looked for, where they start others faster than they are killed."""
AT_ONCE = 65_536
"""What one read takes of what a worker says."""

BATCH = "batch"
DRIVERS = {"python": "kernel", "shell": "shell", BATCH: "batch"}
"""What a worker is by the name of its driver: the module whose `main` it executes.

That of a kernel is its language. A `main` takes the descriptors of the control socket, the sync socket and the two
pipes, and `Settings`; it never returns.
"""


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


class Worker:
    """One process of ours that executes what users send."""

    def __init__(self, driver: str, pipes: Pipes, settings: Settings) -> None:
        self.driver = driver
        self.control, control = socketpair()
        self.sync, sync = socketpair()
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(driver, control.fileno(), sync.fileno(), pipes.out.writer, pipes.err.writer, settings)
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
        return system.unread(self.control.fileno())

    def is_dying(self) -> bool:
        """Whether it ends by itself, so that a broken conversation proves nothing."""
        return self.status is not None or system.is_exiting(self.pid)

    def kill(self) -> None:
        """Kill it; with it what it started, unless it is a Python kernel, whose children are the user's own.

        Of a batch worker that is every descendant, also one that has left the group: orphans among them are its own
        children (`batch.main`).
        """
        if self.driver == BATCH:
            self._kill_descendants()
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

    def _kill_descendants(self) -> None:
        if self.status is not None:
            return
        found = {self.pid}
        try:
            os.kill(self.pid, signal.SIGSTOP)  # else it would go on with the next stage
            # Who forks meanwhile shows up in the next round, as the child of one that is found.
            for _ in range(_ROUNDS):
                new = {pid for pid, parent in system.parents().items() if parent in found} - found
                if not new:
                    return
                for pid in new:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except OSError:
                        pass
                found |= new
        except OSError:
            pass  # no /proc, or it is gone

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
