"""`sys.stdin`, `sys.stdout` and `sys.stderr` of the Python kernel."""

from __future__ import annotations

import fcntl
import io
import os
import sys
import termios
from _thread import RLock

from .words import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Ask = Callable[[str, bool], str]

_NOTHING = bytes(4)


class Fence:
    """Asks the runner to empty both pipes, which makes the order of two streams exact."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.is_child = False
        self._lock = RLock()
        self._asked = 0
        self._answered = 0
        self.heard = 0
        self.said = 0

    def wait(self) -> None:
        with self._lock:
            mine = self._asked = (self._asked + 1) & 255
            self.said += os.write(self.descriptor, bytes((mine,)))
            # Answers that an interrupt left behind, or that a signal handler's own output took, do not count.
            while (self._answered - mine) & 255 >= 128:
                data = os.read(self.descriptor, 256)
                if not data:
                    return
                self.heard += len(data)
                self._answered = data[-1]


def standard_output(fence: Fence) -> io.TextIOWrapper:
    return _text(_Output(fence, 1, 2), "surrogateescape")


def standard_error(fence: Fence) -> io.TextIOWrapper:
    return _text(_Output(fence, 2, 1), "backslashreplace")


def flush() -> None:
    """Write out what user code left in its streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


def without_newline(line: str) -> str:
    return line[:-1] if line.endswith("\n") else line


class Input(io.TextIOBase):
    """`sys.stdin`: every line is a prompt without text."""

    encoding = "utf-8"
    errors = "strict"

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask
        self._rest = ""

    def fileno(self) -> int:
        return 0

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        if not self._rest:
            try:
                self._rest = without_newline(self._ask("", False)) + "\n"
            except EOFError:
                return ""
        end = self._rest.index("\n") + 1 if "\n" in self._rest else len(self._rest)
        if size is not None and size >= 0:
            end = min(end, size)
        line, self._rest = self._rest[:end], self._rest[end:]
        return line

    def read(self, size: int | None = -1, /) -> str:
        if size is not None and size >= 0:
            return self.readline(size)
        return "".join(iter(self.readline, ""))

    def close(self) -> None:
        """`exit()` closes it, and the next run wants to read again."""


class _Output(io.RawIOBase):
    """Descriptor 1 or 2, unbuffered, in order with the other one."""

    def __init__(self, fence: Fence, descriptor: int, other: int) -> None:
        super().__init__()
        self._fence = fence
        self._descriptor = descriptor
        self._other = other

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        # A print comes here twice, so nothing is done that bytes of usual length do not need.
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        if not self._fence.is_child and self._other_holds_bytes():
            self._fence.wait()
        try:
            written = os.write(self._descriptor, data)
        except BlockingIOError:
            written = 0
        if written < len(data):
            write_all(self._descriptor, memoryview(data)[written:])
        return len(data)

    def close(self) -> None:
        """Closing `sys.stdout` must not take away the output of the next run."""

    def _other_holds_bytes(self) -> bool:
        held = bytearray(4)  # takes half as long as a bytes object, which is copied
        try:
            fcntl.ioctl(self._other, termios.FIONREAD, held)
        except OSError:
            return False
        return held != _NOTHING


def _text(raw: io.RawIOBase, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(raw, "utf-8", errors, write_through=True)  # type: ignore[arg-type]
