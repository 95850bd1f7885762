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

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Callable, Iterable

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
        self._interrupting = False
        self._woken, self._waker = os.pipe()
        for descriptor in (self._woken, self._waker):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def follow(
        self,
        child: Child,
        until: int | None = None,
        sending: tuple[int, bytes] | None = None,
        on_quiet: Callable[[], None] | None = None,
    ) -> bool:
        """Serve a program until it ends, or until a descriptor can be read; whether it has ended.

        Args:
            sending: what to write meanwhile, and where, since a pipe does not take everything at once.
            on_quiet: called now and again while nothing comes of an interrupt.

        Raises:
            EOFError: the runner has closed the conversation.
        """
        poll = select.poll()
        for descriptor in (self._words.descriptor, self._woken):
            poll.register(descriptor, select.POLLIN)
        if until is not None:
            poll.register(until, select.POLLIN)
        outlets = [child.input]
        self._interrupting = False
        if sending is not None:
            outlets.append(Outlet(sending[0]))
            outlets[-1].write(sending[1])
        full: dict[int, Outlet] = {}
        quiet_s = _LOOK_FIRST_S
        while True:
            # What came together with an earlier word is here already, and wakes nobody.
            while self._words.have_begun():
                self._hear(child)
            # A shell that was interrupted before it has read its code would read it in the next run.
            if self._interrupting and (sending is None or not (outlets[-1].is_full or holds(sending[0]))):
                self._interrupting = False
                # We are in its group, and ignore it.
                os.killpg(os.getpgrp(), signal.SIGINT)
            full = _wait_for_room(poll, outlets, full)
            looking = self.interrupted or (bool(_CALLS) and not child.asked)
            came = dict(poll.poll(quiet_s * 1000 if looking else None))
            for descriptor in came.keys() & full.keys():
                full[descriptor].flush()
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
                if self.interrupted and on_quiet is not None:
                    on_quiet()
                if not child.asked and child.awaits_input():
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
            self.interrupted = self._interrupting = True


class Outlet:
    """The end of a pipe that is written to without waiting for whoever reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.is_open = True
        self._unsent = bytearray()
        self._ending = False
        os.set_blocking(descriptor, False)

    @property
    def is_full(self) -> bool:
        """Whether there is something to write, for which the pipe has no room yet."""
        return bool(self._unsent)

    def write(self, data: bytes) -> None:
        """Write what the pipe takes, and the rest with each `flush`; nothing after the end."""
        if self.is_open and not self._ending:
            self._unsent += data
            self.flush()

    def end(self) -> None:
        """Close it behind what was written."""
        self._ending = True
        self.flush()

    def flush(self) -> None:
        if self._unsent:
            try:
                del self._unsent[: os.write(self.descriptor, self._unsent)]
            except BlockingIOError:
                pass
            except OSError:
                self._unsent.clear()  # nobody reads any more
        if self._ending and not self._unsent:
            self.close()

    def close(self) -> None:
        """Close it, whatever is unsent."""
        self._unsent.clear()
        if self.is_open:
            self.is_open = False
            os.close(self.descriptor)


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
        self.input = Outlet(writer)
        held = os.fstat(self._reader)
        self._pipe = held.st_dev, held.st_ino
        # An interrupt that comes while the child still ignores it, as we do, waits until it does not.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(argv, environ, {**(descriptors or {}), input_as: self._reader})
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def feed(self, line: str | None) -> None:
        """Give it a line of input without its end, or the end of all input, when it has room for that."""
        if line is None:
            self.input.end()
        else:
            self.input.write((line + "\n").encode("utf-8", "surrogateescape"))

    def has_ended(self) -> bool:
        """Whether it has; orphans that have become our children are waited for too."""
        while self.status is None:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                break
            if pid == self.pid:
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
        self.input.close()

    def awaits_input(self) -> bool:
        """Whether it, or a process that it started, waits for the pipe to have something."""
        if not self.input.is_open or self.input.is_full or holds(self._reader):
            return False
        threads = ((pid, thread) for pid in _descendants(self.pid) for thread in _threads(pid))
        return any(_waits(pid, thread, self._pipe) for pid, thread in threads)

    def awaits(self, pipe: int) -> bool:
        """Whether its first thread waits for a pipe of ours, either end of it, to have something."""
        held = os.fstat(pipe)
        return _waits(self.pid, self.pid, (held.st_dev, held.st_ino))


def holds(pipe: int) -> bool:
    """Whether it has what nobody has read yet; either end of it tells."""
    return fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4)


def _wait_for_room(poll: select.poll, outlets: list[Outlet], before: dict[int, Outlet]) -> dict[int, Outlet]:
    """Have those polled that are full, and no other; which these are."""
    full = {outlet.descriptor: outlet for outlet in outlets if outlet.is_full}
    for descriptor in before.keys() - full.keys():
        poll.unregister(descriptor)
    for descriptor in full:
        poll.register(descriptor, select.POLLOUT)
    return full


def _waits(pid: int, thread: int, pipe: tuple[int, int]) -> bool:
    """Whether a thread waits to read from the pipe of this device and inode."""
    try:
        with open(f"/proc/{pid}/task/{thread}/syscall") as file:
            number, *arguments = file.read().split()
        call = _CALLS.get(int(number))
        if call is None:
            return False
        first, second = int(arguments[0], 16), int(arguments[1], 16)
        waited_for = [os.stat(f"/proc/{pid}/fd/{one}") for one in _waited_for(pid, call, first, second)]
        return any((held.st_dev, held.st_ino) == pipe for held in waited_for)
    except (OSError, ValueError, IndexError, OverflowError, struct.error):
        return False  # it runs, or is gone, or is not ours to look at, or waits with an address that is none


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


def _become(argv: list[str], environ: dict[str, str], descriptors: dict[int, int]) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for name in (signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
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
