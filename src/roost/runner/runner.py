"""The runner: one thread between the agent's socket and the kernel (docs/protocol/runner.md)."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from _collections import deque  # type: ignore[import-not-found]
from _socket import socket, socketpair

from . import system
from .codec import from_json, to_ascii_json, to_json
from .link import Link
from .poller import READ, WRITE, Poller
from .protocol import LENGTH, MAX_OUTPUT, MAX_PAYLOAD, Frame, Kind, utf8_boundary

# Every module here is part of the time that a session takes to start, so some are the C halves of well-known ones.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, Callable, NoReturn
else:
    import _signal as signal

# The kernel escapes what is not ASCII, so its words are longer than the frames that they become.
_MAX_WORD = 8 << 20
_AT_ONCE = 65_536
_INT = struct.Struct("i")
_STATUSES = ("ok", "error", "exited", "interrupted")


def main(argument: str) -> NoReturn:
    """Serve until the agent says stop. The argument is the descriptor of the JSON object of section 4."""
    system.set_dumpable(False)
    with open(int(argument), "rb") as file:
        config = from_json(file.read().decode())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    if os.getpid() != 1:
        system.become_subreaper()
    listener = socket(fileno=config["socket_fd"])
    os.set_inheritable(config["socket_fd"], False)
    listener.listen(8)
    if "ready_fd" in config:
        os.write(config["ready_fd"], b"1")
        os.close(config["ready_fd"])
    os.chdir(config["home"])
    Runner(listener, config["home"], config["environ"]).serve()
    sys.exit(0)


class _GarbageError(Exception):
    """The kernel said something that it cannot say: user code wrote to its socket."""


class _ClosedError(_GarbageError):
    """The kernel closed its socket."""


class _Run:
    def __init__(self, number: int, code: str, echo: bool) -> None:
        self.number = number
        self.code = code
        self.echo = echo
        self.prompts = 0
        self.waiting = False


class Runner:
    """The queue of runs, the kernel that executes them, and the pipes that it writes to."""

    def __init__(self, listener: socket, home: str, environ: dict[str, str]) -> None:
        self._home = home
        self._environ = environ
        self._selector = Poller()
        self._link = Link(listener, self._selector, self._on_command, lambda: self._seen)
        self._seen = 0
        self._queue: deque[_Run] = deque()
        self._current: _Run | None = None
        self._stopping = False
        self._listening = True
        self._state_lost = False
        # One pair of pipes for all kernels, so that what a dead kernel left behind can still write.
        self._streams = (_Stream(Kind.STDOUT), _Stream(Kind.STDERR))
        for stream in self._streams:
            self._selector.register(stream.reader, READ, stream.on_ready(self._read))
        self._watch_children()
        self._kernel = self._fork()

    def serve(self) -> None:
        """Go round until stopped."""
        while not self._stopping:
            for callback, events in self._selector.wait():
                callback(events)
            self._settle()
            self._link.flush()
        kernel = self._kernel
        if kernel is not None and kernel.status is None:
            kernel.kill()

    # -- from the agent

    def _on_command(self, frame: Frame, message: dict[str, Any]) -> None:
        if frame.kind == Kind.START:
            self._start(frame.run, str(message["code"]), bool(message.get("echo", True)))
        elif frame.kind == Kind.INPUT:
            self._input(frame.run, message)
        elif frame.kind == Kind.INTERRUPT:
            self._interrupt(frame.run)
        elif frame.kind == Kind.STOP:
            self._stopping = True
        else:
            raise ValueError(f"an unknown kind of frame: {frame.kind}")

    def _start(self, number: int, code: str, echo: bool) -> None:
        if number <= self._seen:
            return
        self._seen = number
        self._queue.append(_Run(number, code, echo))
        # Not left to the end of the round: the kernel can work while we send.
        self._begin_next()

    def _input(self, number: int, message: dict[str, Any]) -> None:
        run, kernel = self._current, self._kernel
        if run is None or kernel is None or run.number != number or not run.waiting:
            return
        if message["prompt"] != run.prompts:
            return
        answer = {"eof": True} if message.get("eof") else {"text": str(message["text"])}
        run.waiting = False
        kernel.send({"op": "input", **answer})

    def _interrupt(self, number: int) -> None:
        run, kernel = self._current, self._kernel
        if run is not None and number in (0, run.number):
            if kernel is not None and kernel.status is None:
                # First the word, then the signal: see Kernel._look_for_interrupt.
                kernel.send({"op": "interrupt", "run": run.number})
                kernel.signal(signal.SIGINT)
            return
        for waiting in list(self._queue):
            if waiting.number == number:
                self._queue.remove(waiting)
                self._emit_end(number, "interrupted", 130, 0.0, dequeued=True)

    # -- from the kernel

    def _read(self, stream: _Stream) -> int:
        """Read once; the number of bytes, 0 if there are none."""
        try:
            data = os.read(stream.reader, MAX_OUTPUT)
        except BlockingIOError:
            return 0
        self._emit_output(stream, data)
        return len(data)

    def _drain(self) -> None:
        """Read what the pipes hold now, and no more: somebody may write without end."""
        for stream in self._streams:
            left = stream.size()
            while left > 0 and self._link.has_room:
                count = self._read(stream)
                if not count:
                    break
                left -= count

    def _emit_output(self, stream: _Stream, data: bytes) -> None:
        data = stream.tail + data
        while data:
            part = data[:MAX_OUTPUT]
            cut = utf8_boundary(part)
            if cut == 0:
                break
            self._link.emit(stream.kind, self._run_number(), part[:cut])
            data = data[cut:]
        stream.tail = data

    def _emit_tails(self) -> None:
        for stream in self._streams:
            if stream.tail:
                self._link.emit(stream.kind, self._run_number(), stream.tail)
                stream.tail = b""

    def _on_control(self, kernel: _Kernel, events: int) -> None:
        if kernel is not self._kernel or kernel.closed:
            return
        try:
            if events & WRITE:
                kernel.flush()
            if events & READ:
                for word in kernel.receive():
                    self._on_word(kernel, word)
        except (_GarbageError, ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            # Its death, which ends the run, comes by SIGCHLD.
            if not kernel.is_dying():
                kernel.channel = "closed" if isinstance(error, (_ClosedError, OSError)) else "broken"
            kernel.kill()
            kernel.close()

    def _on_sync(self, kernel: _Kernel) -> None:
        if kernel is not self._kernel or kernel.closed:
            return
        try:
            data = kernel.sync.recv(256)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(kernel.sync)
            kernel.sync_open = False
            return
        self._hear_out(kernel)
        self._drain()
        if not kernel.closed:
            try:
                kernel.sync.send(data)
            except OSError:
                pass

    def _hear_out(self, kernel: _Kernel) -> None:
        """Take in what it has said by now, and no more: a word may be longer than one read."""
        left = kernel.unread()
        while left > 0 and not kernel.closed:
            self._on_control(kernel, READ)
            left -= _AT_ONCE

    def _on_word(self, kernel: _Kernel, word: dict[str, Any]) -> None:
        run = self._current
        if run is None:
            return
        self._drain()
        op = word["op"]
        if op == "end":
            self._finish(kernel, run, word)
        elif op == "prompt":
            self._prompt(run, word)
        elif op == "result":
            self._emit(Kind.RESULT, run, {"text": _text(word["text"]), "mime": _texts(word["mime"])})
        elif op == "display":
            self._emit(Kind.DISPLAY, run, _display(word))
        elif op == "error":
            trace = [_text(line) for line in word["traceback"]]
            error = {"name": _text(word["name"]), "value": _text(word["value"]), "traceback": trace}
            self._emit(Kind.ERROR, run, {**error, "frames": [_place(frame) for frame in word["frames"]]})
        else:
            raise _GarbageError(op)

    def _prompt(self, run: _Run, word: dict[str, Any]) -> None:
        text, password = _text(word["text"]), word["password"] is True
        if run.waiting:
            raise _GarbageError("two prompts at once")
        run.waiting = True
        run.prompts += 1
        self._emit(Kind.PROMPT, run, {"prompt": run.prompts, "text": text, "password": password})

    def _finish(self, kernel: _Kernel, run: _Run, word: dict[str, Any]) -> None:
        status, code, spent = word["status"], word["exit_code"], word["cpu_s"]
        if status not in _STATUSES or type(code) is not int or not 0 <= code <= 255:
            raise _GarbageError("end")
        if type(spent) not in (int, float) or not 0 <= spent < 1e12:
            raise _GarbageError("end")
        moved = {name: word.get(name) for name in ("read_bytes", "written_bytes")}
        for count in moved.values():
            if count is not None and (type(count) is not int or not 0 <= count < 1 << 63):
                raise _GarbageError("end")
        kernel.reported += spent
        self._end(run, status, code, spent, **moved)

    def _end(self, run: _Run, status: str, code: int, spent: float, **more: Any) -> None:
        self._emit_tails()
        self._emit_end(run.number, status, code, spent, **more)
        self._current = None

    def _emit_end(self, run: int, status: str, code: int, spent: float, **more: Any) -> None:
        end = {"status": status, "exit_code": code, "cpu_s": round(spent, 6)}
        end.update({name: value for name, value in more.items() if value is not None})
        self._link.emit(Kind.END, run, to_json(end))

    def _emit(self, kind: int, run: _Run, message: dict[str, Any]) -> None:
        payload = to_json(message)
        if len(payload) > MAX_PAYLOAD:
            raise _GarbageError("too long")
        self._link.emit(kind, run.number, payload)

    def _run_number(self) -> int:
        return 0 if self._current is None else self._current.number

    # -- kernels and their deaths

    def _fork(self) -> _Kernel | None:
        try:
            kernel = _Kernel(self._streams, self._home, self._environ)
        except OSError as error:
            message = f"no process could be started: {error.strerror}\n"
            self._link.emit(Kind.STDERR, self._run_number(), message.encode())
            return None
        kernel.register(self._selector, self._on_control, self._on_sync, self._listening)
        return kernel

    def _begin_next(self) -> None:
        if self._current is not None or not self._queue or not self._link.has_room:
            return
        if self._kernel is not None and self._kernel.status is not None:
            return  # _settle first says what became of it
        self._emit_tails()
        run = self._current = self._queue.popleft()
        self._link.emit(Kind.STARTED, run.number, to_json({"state_lost": self._state_lost}))
        if self._kernel is None:
            self._kernel = self._fork()
        if self._kernel is None:
            self._end(run, "kernel-died", 1, 0.0)
            return
        self._state_lost = False
        self._kernel.used = True
        self._kernel.send({"op": "run", "run": run.number, "code": run.code, "echo": run.echo})

    def _settle(self) -> None:
        """What follows from this round: a kernel's death, the next run, listening or not."""
        kernel = self._kernel
        if kernel is not None and kernel.status is not None and self._link.has_room:
            self._bury(kernel, kernel.status)
        self._begin_next()
        self._listen(self._link.has_room)

    def _bury(self, kernel: _Kernel, status: int) -> None:
        # Its last words first: it may have ended its run before it died.
        self._hear_out(kernel)
        kernel.close()
        run = self._current
        if run is not None:
            self._drain()
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            code = os.WEXITSTATUS(status) if number is None else 128 + number
            spent = max(0.0, kernel.cpu_seconds - kernel.reported)
            # It may have ended by itself before our signal reached it.
            channel = kernel.channel if number == signal.SIGKILL else None
            self._end(run, "kernel-died", code, spent, signal=number, channel=channel)
        self._state_lost = self._state_lost or kernel.used
        # One that died without a run would die again at once; the next run gets its own.
        self._kernel = self._fork() if kernel.used else None

    def _listen(self, listening: bool) -> None:
        if listening == self._listening:
            return
        self._listening = listening
        for stream in self._streams:
            if listening:
                self._selector.register(stream.reader, READ, stream.on_ready(self._read))
            else:
                self._selector.unregister(stream.reader)
        if self._kernel is not None:
            self._kernel.listen(listening)

    def _watch_children(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def on_child(_events: int) -> None:
            os.read(reader, 4096)
            self._reap()

        self._selector.register(reader, READ, on_child)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._kernel is not None and pid == self._kernel.pid:
                self._kernel.status = status
                self._kernel.cpu_seconds = usage.ru_utime + usage.ru_stime


class _Stream:
    """A pipe of the kernel, and the beginning of a character that it has not finished."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.reader, self.writer = os.pipe()
        self.tail = b""
        os.set_blocking(self.reader, False)

    def size(self) -> int:
        held: int = _INT.unpack(fcntl.ioctl(self.reader, termios.FIONREAD, bytes(4)))[0]
        return held

    def on_ready(self, read: Callable[[_Stream], int]) -> Callable[[int], object]:
        return lambda _events: read(self)


class _Kernel:
    """The runner's view of one kernel process."""

    def __init__(self, streams: tuple[_Stream, _Stream], home: str, environ: dict[str, str]) -> None:
        self.control, control = socketpair()
        self.sync, sync = socketpair()
        try:
            self.pid = os.fork()
            if self.pid == 0:
                out, err = streams
                _become_kernel(control.fileno(), sync.fileno(), out.writer, err.writer, home, environ)
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
        on_control: Callable[[_Kernel, int], None],
        on_sync: Callable[[_Kernel], None],
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
            data = self.control.recv(_AT_ONCE)
        except BlockingIOError:
            return []
        if not data:
            raise _ClosedError
        inbox = self._inbox
        inbox += data
        words = []
        while len(inbox) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(inbox)
            if length > _MAX_WORD:
                raise _GarbageError("too long")
            end = LENGTH.size + length
            if len(inbox) < end:
                break
            word = from_json(bytes(inbox[LENGTH.size : end]))
            if not isinstance(word, dict):
                raise _GarbageError("no object")
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
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        # Once reaped the number may be somebody else's.
        if self.status is None:
            try:
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


def _become_kernel(*arguments: Any) -> NoReturn:
    """What only the kernel needs is imported by the kernel, while the runner already answers."""
    try:
        from .kernel import main as kernel_main

        kernel_main(*arguments)
    finally:
        os._exit(1)


def _text(value: Any) -> str:
    """A string that the kernel claims to have sent; lone surrogates would not survive the wire."""
    if not isinstance(value, str):
        raise _GarbageError("text expected")
    return value.encode("utf-8", "replace").decode()


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _GarbageError("an object expected")
    return {_text(key): _text(content) for key, content in value.items()}


def _display(word: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"mime": _texts(word["mime"])}
    if "display_id" in word:
        shown["display_id"] = _text(word["display_id"])
    if word.get("update") is True:
        shown["update"] = True
    return shown


def _place(frame: Any) -> dict[str, Any]:
    if not isinstance(frame, dict) or type(frame["line"]) is not int or not 0 <= frame["line"] < 1 << 63:
        raise _GarbageError("a frame expected")
    return {"line": frame["line"], **{name: _text(frame[name]) for name in ("file", "name", "text")}}
