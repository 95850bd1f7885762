"""A program of the user's, and whether it waits for a line of input.

Linux tells which system call a thread waits in: `read` of our pipe, or a wait for several files our pipe among them.
Nobody is woken when that begins, so a quiet program is looked at, less and less often.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import termios

from . import system
from .words import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Iterable

    from .words import Words
else:
    import _signal as signal

_LOOK_FIRST_S = 0.01
_LOOK_LAST_S = 0.25
_MAX_THREADS = 64
_MAX_POLLED = 64
_INT = struct.Struct("i")
_POLLED = struct.Struct("ihh")
_SELECT_BYTES = 128
_SAFE = 128

# Numbers of system calls by machine: what reads a descriptor, and what waits for several.
_CALLS = {
    "x86_64": {0: "read", 19: "read", 7: "poll", 271: "poll", 23: "select", 270: "select", 232: "epoll", 281: "epoll"},
    "aarch64": {63: "read", 65: "read", 73: "poll", 72: "select", 22: "epoll"},
}.get(os.uname().machine, {})


class Conversation:
    """What a worker and the runner say to each other while a program runs: input for it, and interrupts."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self.interrupted = False
        self._woken, self._waker = os.pipe()
        for descriptor in (self._woken, self._waker):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def follow(self, child: Child, until: int | None = None, sending: tuple[int, bytes] | None = None) -> bool:
        """Serve a program until it ends, or until a descriptor can be read; whether it has ended.

        Args:
            sending: what to write meanwhile, and where, since a pipe does not take everything at once.

        Raises:
            EOFError: the runner has closed the conversation.
        """
        poll = select.poll()
        for descriptor in (self._words.descriptor, self._woken):
            poll.register(descriptor, select.POLLIN)
        if until is not None:
            poll.register(until, select.POLLIN)
        rest = sending[1] if sending is not None else b""
        if sending is not None:
            os.set_blocking(sending[0], False)
            poll.register(sending[0], select.POLLOUT)
        quiet_s = _LOOK_FIRST_S
        while True:
            looking = bool(_CALLS) and not child.asked
            came = dict(poll.poll(quiet_s * 1000 if looking else None))
            if sending is not None and sending[0] in came:
                rest = _write_some(sending[0], rest)
                if not rest:
                    poll.unregister(sending[0])
                    sending = None
            if self._words.descriptor in came:
                self._hear(child)
                quiet_s = _LOOK_FIRST_S
            if self._woken in came:
                os.read(self._woken, 4096)
            # Before its end: what it has reported it reported before that.
            if until is not None and until in came:
                if came[until] & select.POLLIN:
                    return False
                poll.unregister(until)
            if child.has_ended():
                return True
            if not came and looking:
                if child.awaits_input():
                    child.asked = True
                    self._words.send({"op": "prompt", "text": "", "password": False})
                quiet_s = min(2 * quiet_s, _LOOK_LAST_S)

    def _hear(self, child: Child) -> None:
        word = self._words.receive()
        if word is None:
            raise EOFError
        if word["op"] == "input":
            child.asked = False
            child.feed(None if word.get("eof") else str(word["text"]))
        elif word["op"] == "interrupt":
            self.interrupted = True
            # We are in its group, and ignore it.
            os.killpg(os.getpgrp(), signal.SIGINT)


class Child:
    """One program, with a pipe as its standard input."""

    def __init__(
        self, argv: list[str], environ: dict[str, str], descriptors: dict[int, int] | None = None, input_as: int = 0
    ) -> None:
        """Start it in our process group and folder.

        Args:
            descriptors: which of ours it gets, by the number that they have there; 1 and 2 are ours if nothing is said.
            input_as: the number that the pipe for its input has there.

        Raises:
            OSError: there can be no further process.
        """
        self.asked = False
        self.status: int | None = None
        self.cpu_seconds = 0.0
        self._reader, writer = os.pipe()
        self._writer: int | None = writer
        held = os.fstat(self._reader)
        self._pipe = held.st_dev, held.st_ino
        self.pid = os.fork()
        if self.pid == 0:
            _become(argv, environ, {**(descriptors or {}), input_as: self._reader})

    def feed(self, line: str | None) -> None:
        """A line of input without its end, or the end of all input."""
        if self._writer is None:
            return
        try:
            if line is not None:
                write_all(self._writer, (line + "\n").encode("utf-8", "surrogateescape"))
                return
        except OSError:
            pass  # nobody reads any more
        os.close(self._writer)
        self._writer = None

    def has_ended(self) -> bool:
        if self.status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status = status
                self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return self.status is not None

    def exit_code(self) -> int:
        """Its exit code, or 128 + the signal that ended it."""
        number = self.signal()
        return 128 + number if number is not None else os.WEXITSTATUS(self.status or 0)

    def signal(self) -> int | None:
        """The signal that ended it."""
        status = self.status or 0
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None

    def cpu_so_far(self) -> float:
        """CPU seconds of it, and of the children that it has waited for."""
        if self.status is not None:
            return self.cpu_seconds
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                ticks = file.read().rpartition(")")[2].split()[11:15]
        except OSError:
            return self.cpu_seconds
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.close(self._reader)
        self.feed(None)

    def awaits_input(self) -> bool:
        """Whether it, or a process that it started, waits for the pipe to have something."""
        if self._writer is None or fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)) != bytes(4):
            return False
        return any(self._waits(pid, thread) for pid in _descendants(self.pid) for thread in _threads(pid))

    def _waits(self, pid: int, thread: int) -> bool:
        try:
            with open(f"/proc/{pid}/task/{thread}/syscall") as file:
                number, *arguments = file.read().split()
            call = _CALLS.get(int(number))
            if call is None:
                return False
            first, second = int(arguments[0], 16), int(arguments[1], 16)
            return any(self._is_ours(pid, descriptor) for descriptor in _waited_for(pid, call, first, second))
        except (OSError, ValueError, IndexError, struct.error):
            return False  # it runs, or is gone, or is not ours to look at

    def _is_ours(self, pid: int, descriptor: int) -> bool:
        held = os.stat(f"/proc/{pid}/fd/{descriptor}")
        return (held.st_dev, held.st_ino) == self._pipe


def _waited_for(pid: int, call: str, first: int, second: int) -> Iterable[int]:
    """The descriptors that a system call of these arguments waits to read from."""
    if call == "read":
        return [first]
    if call == "epoll":
        with open(f"/proc/{pid}/fdinfo/{first}") as file:
            return [int(line.split()[1]) for line in file if line.startswith("tfd:")]
    if call == "poll":
        entries = _memory(pid, first, min(second, _MAX_POLLED) * _POLLED.size)
        return [number for number, events, _ in _POLLED.iter_unpack(entries) if events & select.POLLIN]
    bits = int.from_bytes(_memory(pid, second, _SELECT_BYTES), sys.byteorder)
    return [number for number in range(min(first, 8 * _SELECT_BYTES)) if bits >> number & 1]


def _memory(pid: int, address: int, size: int) -> bytes:
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size, address)
    finally:
        os.close(descriptor)


def _descendants(pid: int) -> Iterable[int]:
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        for thread in _threads(one):
            try:
                with open(f"/proc/{one}/task/{thread}/children") as file:
                    waiting += [int(child) for child in file.read().split()]
            except OSError:
                pass


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")[:_MAX_THREADS]]
    except OSError:
        return []


def _write_some(descriptor: int, data: bytes) -> bytes:
    """What is left when the descriptor takes no more; nothing where nobody will read it."""
    try:
        return data[os.write(descriptor, data) :]
    except BlockingIOError:
        return data
    except OSError:
        return b""


def _become(argv: list[str], environ: dict[str, str], descriptors: dict[int, int]) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for name in (signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        # First out of the way of each other, then to their places.
        moved = {number: fcntl.fcntl(ours, fcntl.F_DUPFD, _SAFE) for number, ours in descriptors.items()}
        for number, ours in moved.items():
            os.dup2(ours, number)
        system.close_all_but({0, 1, 2, *descriptors})
        os.execve(argv[0], argv, environ)
    except BaseException as error:
        os.write(2, f"{argv[0]}: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(127)
