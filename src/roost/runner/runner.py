"""The runner: one thread between the agent's socket and the kernel (docs/protocol/runner.md)."""

from __future__ import annotations

import os
import sys
from _collections import deque  # type: ignore[import-not-found]
from _socket import socket
from time import monotonic

from . import system
from .codec import from_json, to_json
from .link import Link
from .pipes import Pipes
from .poller import READ, WRITE, Poller
from .protocol import (
    MAX_COMPLETION,
    MAX_COMPLETIONS,
    MAX_PAYLOAD,
    STAGES,
    Frame,
    Kind,
)
from .worker import (
    AT_ONCE,
    BATCH,
    DRIVERS,
    ClosedError,
    GarbageError,
    Settings,
    Worker,
)

# Every module here is part of the time that a session takes to start, so some are the C halves of well-known ones.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, NoReturn
else:
    import _signal as signal

_NO_DRIVER = 127
# A short run is told at once: the agent is not woken for its start, and again for its end.
_HOLD_S = 0.002
# What every session's processes find (spec/sessions-lifecycle.md, section 8).
_STANDARD = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "USER": "work",
    "LANG": "C.UTF-8",
    "TERM": "xterm",
    "SHELL": "/bin/sh",
}
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
    language, program = config.get("language", "python"), config.get("program", sys.executable)
    environ = {**_STANDARD, "HOME": config["home"], **config["environ"]}
    environ["PATH"] = ":".join((*config.get("path", ()), environ["PATH"]))
    Runner(listener, Settings(config["home"], environ, language, program)).serve()
    sys.exit(0)


class _Run:
    def __init__(self, number: int, message: dict[str, Any]) -> None:
        self.number = number
        self.code = str(message["code"])
        self.echo = bool(message.get("echo", True))
        self.stages = _commands(message["stages"]) if message["mode"] == BATCH else None
        self.prompts = 0
        self.waiting = False
        self.begun: str | None = None

    def work(self) -> dict[str, Any]:
        """What a worker is told."""
        if self.stages is not None:
            return {"op": "run", "run": self.number, "stages": self.stages}
        return {"op": "run", "run": self.number, "code": self.code, "echo": self.echo}


class Runner:
    """The queue of runs, the kernel that executes them, and the pipes that it writes to."""

    def __init__(self, listener: socket, settings: Settings) -> None:
        self._settings = settings
        self._selector = Poller()
        self._link = Link(listener, self._selector, self._on_command, lambda: self._seen)
        self._seen = 0
        self._queue: deque[_Run] = deque()
        self._current: _Run | None = None
        self._stopping = False
        self._listening = True
        self._state_lost = False
        # Who asked the kernel for completions, and the number of the question.
        self._completing: tuple[object, int] | None = None
        self._batch: Worker | None = None
        self._pipes = Pipes(self._selector, self._link, self._run_number)
        self._watch_children()
        self._kernel = self._fork_kernel()

    def serve(self) -> None:
        """Go round until stopped."""
        while not self._stopping:
            for callback, events in self._selector.wait(self._patience_s()):
                callback(events)
            self._pipes.look_at_paced()
            self._settle()
            self._link.flush()
        for worker in (self._kernel, self._batch):
            if worker is not None:
                worker.kill()

    def _patience_s(self) -> float | None:
        """How long to wait for what may happen; None if nothing is due."""
        due = [at for at in (self._pipes.due_at(), self._link.send_at) if at is not None]
        return max(0.0, min(due) - monotonic()) if due else None

    # -- from the agent

    def _on_command(self, frame: Frame, message: dict[str, Any]) -> None:
        if frame.kind == Kind.START:
            self._start(frame.run, message)
        elif frame.kind == Kind.INPUT:
            self._input(frame.run, message)
        elif frame.kind == Kind.INTERRUPT:
            self._interrupt(frame.run)
        elif frame.kind == Kind.KILL:
            self._kill(frame.run)
        elif frame.kind == Kind.COMPLETE:
            self._complete(int(message["id"]), str(message["text"]))
        elif frame.kind == Kind.STOP:
            self._stopping = True
        else:
            raise ValueError(f"an unknown kind of frame: {frame.kind}")

    def _start(self, number: int, message: dict[str, Any]) -> None:
        if number <= self._seen:
            return
        self._queue.append(_Run(number, message))
        self._seen = number
        # Not left to the end of the round: the kernel can work while we send.
        self._begin_next()

    def _input(self, number: int, message: dict[str, Any]) -> None:
        run, worker = self._current, self._worker
        if run is None or worker is None or run.number != number or not run.waiting:
            return
        if message["prompt"] != run.prompts:
            return
        answer = {"eof": True} if message.get("eof") else {"text": str(message["text"])}
        run.waiting = False
        worker.send({"op": "input", **answer})

    def _interrupt(self, number: int) -> None:
        run, worker = self._current, self._worker
        if run is not None and number in (0, run.number):
            if worker is not None and worker.status is None:
                # First the word, then the signal: see Kernel._look_for_interrupt.
                worker.send({"op": "interrupt", "run": run.number})
                worker.interrupt()
            return
        for waiting in list(self._queue):
            if waiting.number == number:
                self._queue.remove(waiting)
                self._emit_end(number, "interrupted", 130, 0.0, dequeued=True)

    def _kill(self, number: int) -> None:
        run, worker = self._current, self._worker
        if run is not None and worker is not None and run.number == number:
            worker.kill()

    def _complete(self, number: int, text: str) -> None:
        kernel, asked = self._kernel, (self._link.peer, number)
        is_free = self._current is None and not self._queue and self._completing is None
        if not is_free or kernel is None or kernel.status is not None or kernel.closed:
            self._answer_completion(asked, [])
            return
        self._completing = asked
        kernel.send({"op": "complete", "text": text})

    def _answer_completion(self, asked: tuple[object, int], found: list[str]) -> None:
        peer, number = asked
        self._link.answer(peer, Kind.COMPLETIONS, to_json({"id": number, "completions": found}))

    @property
    def _worker(self) -> Worker | None:
        """What works on the current run."""
        return self._kernel if self._current is None or self._current.stages is None else self._batch

    # -- from the kernel

    def _on_control(self, kernel: Worker, events: int) -> None:
        if kernel not in (self._kernel, self._batch) or kernel.closed:
            return
        try:
            if events & WRITE:
                kernel.flush()
            if events & READ:
                for word in kernel.receive():
                    self._on_word(kernel, word)
        except (GarbageError, ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            # Its death, which ends the run, comes by SIGCHLD.
            if not kernel.is_dying():
                kernel.channel = "closed" if isinstance(error, (ClosedError, OSError)) else "broken"
            kernel.kill()
            kernel.close()

    def _on_sync(self, kernel: Worker) -> None:
        if kernel not in (self._kernel, self._batch) or kernel.closed:
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
        self._pipes.drain()
        if not kernel.closed:
            try:
                kernel.sync.send(data)
            except OSError:
                pass

    def _hear_out(self, kernel: Worker) -> None:
        """Take in what it has said by now, and no more: a word may be longer than one read."""
        left = kernel.unread()
        while left > 0 and not kernel.closed:
            self._on_control(kernel, READ)
            left -= AT_ONCE

    def _on_word(self, worker: Worker, word: dict[str, Any]) -> None:
        if word["op"] == "completions":
            self._on_completions(word["completions"])
            return
        run = self._current
        if run is None or worker is not self._worker:
            return
        op = word["op"]
        self._pipes.drain(wholly=op == "end")
        if op == "end":
            self._finish(worker, run, word)
        elif op == "prompt":
            self._prompt(run, word)
        elif op == "stage" and run.stages is not None:
            self._end_stage(run, word)
        elif op == "result":
            self._emit(Kind.RESULT, run, {"text": _text(word["text"]), "mime": _texts(word["mime"])})
        elif op == "display":
            self._emit(Kind.DISPLAY, run, _display(word))
        elif op == "error":
            trace = [_text(line) for line in word["traceback"]]
            error = {"name": _text(word["name"]), "value": _text(word["value"]), "traceback": trace}
            self._emit(Kind.ERROR, run, {**error, "frames": [_place(frame) for frame in word["frames"]]})
        else:
            raise GarbageError(op)

    def _on_completions(self, found: Any) -> None:
        if self._completing is None or not isinstance(found, list) or len(found) > MAX_COMPLETIONS:
            raise GarbageError("completions")
        names = [_text(name) for name in found]
        if any(len(name) > MAX_COMPLETION for name in names):
            raise GarbageError("completions")
        asked, self._completing = self._completing, None
        self._answer_completion(asked, names)

    def _end_stage(self, run: _Run, word: dict[str, Any]) -> None:
        stage, code = word["stage"], word["exit_code"]
        due = STAGES[0] if run.begun is None else STAGES[1] if run.begun == STAGES[0] else None
        if stage != due or type(code) is not int or not -1 <= code <= 255:
            raise GarbageError("stage")
        run.begun = stage
        run.waiting = False
        self._pipes.emit_tails()
        self._emit(Kind.STAGE, run, {"stage": stage, "exit_code": code})

    def _prompt(self, run: _Run, word: dict[str, Any]) -> None:
        text, password = _text(word["text"]), word["password"] is True
        if run.waiting:
            raise GarbageError("two prompts at once")
        run.waiting = True
        run.prompts += 1
        self._emit(Kind.PROMPT, run, {"prompt": run.prompts, "text": text, "password": password})
        self._link.send_at = None

    def _finish(self, worker: Worker, run: _Run, word: dict[str, Any]) -> None:
        status, code, spent = word["status"], word["exit_code"], word["cpu_s"]
        if status not in _STATUSES or type(code) is not int or not -1 <= code <= 255:
            raise GarbageError("end")
        if type(spent) not in (int, float) or not 0 <= spent < 1e12:
            raise GarbageError("end")
        moved = {name: word.get(name) for name in ("read_bytes", "written_bytes")}
        for count in moved.values():
            if count is not None and (type(count) is not int or not 0 <= count < 1 << 63):
                raise GarbageError("end")
        number = word.get("signal")
        if number is not None and (type(number) is not int or not 1 <= number <= 64):
            raise GarbageError("end")
        worker.reported += spent
        self._state_lost = self._state_lost or word.get("lost") is True
        self._end(run, status, code, spent, signal=number, **moved)

    def _end(self, run: _Run, status: str, code: int, spent: float, **more: Any) -> None:
        self._pipes.emit_tails()
        self._emit_end(run.number, status, code, spent, **more)
        self._link.send_at = None
        self._current = None
        self._pipes.relax()
        if self._batch is not None:
            self._batch.close()
            if self._batch.status is not None:
                self._batch = None

    def _emit_end(self, run: int, status: str, code: int, spent: float, **more: Any) -> None:
        end = {"status": status, "exit_code": code, "cpu_s": round(spent, 6)}
        end.update({name: value for name, value in more.items() if value is not None})
        self._link.emit(Kind.END, run, to_json(end))

    def _emit(self, kind: int, run: _Run, message: dict[str, Any]) -> None:
        payload = to_json(message)
        if len(payload) > MAX_PAYLOAD:
            raise GarbageError("too long")
        self._link.emit(kind, run.number, payload)

    def _run_number(self) -> int:
        return 0 if self._current is None else self._current.number

    # -- kernels and their deaths

    def _fork_kernel(self) -> Worker | None:
        language = self._settings.language
        return self._fork(language) if language in DRIVERS else None

    def _fork(self, driver: str) -> Worker | None:
        try:
            worker = Worker(driver, self._pipes, self._settings)
        except OSError as error:
            message = f"no process could be started: {error.strerror}\n"
            self._link.emit(Kind.STDERR, self._run_number(), message.encode())
            return None
        worker.register(self._selector, self._on_control, self._on_sync, self._listening)
        return worker

    def _begin_next(self) -> None:
        if self._current is not None or not self._queue or not self._link.has_room:
            return
        if any(worker is not None and worker.status is not None for worker in (self._kernel, self._batch)):
            return  # _settle first says what became of it
        if self._queue[0].stages is not None and self._batch is not None:
            return  # the one before is on its way out
        self._pipes.emit_tails()
        run = self._current = self._queue.popleft()
        self._link.send_at = monotonic() + _HOLD_S
        self._link.emit(Kind.STARTED, run.number, to_json({"state_lost": self._state_lost and run.stages is None}))
        if run.stages is not None:
            self._batch = self._fork(BATCH)
        elif self._kernel is None:
            self._kernel = self._fork_kernel()
        worker = self._worker
        if worker is None:
            self._refuse(run)
            return
        if run.stages is None:
            self._state_lost = False
        worker.used = True
        worker.send(run.work())

    def _refuse(self, run: _Run) -> None:
        language = self._settings.language
        if run.stages is None and language not in DRIVERS:
            message = f"{language} has no interpreter that lives between runs; use batch mode\n"
            self._link.emit(Kind.STDERR, run.number, message.encode())
            self._end(run, "exited", _NO_DRIVER, 0.0)
        else:
            self._end(run, "kernel-died", 1, 0.0)

    def _settle(self) -> None:
        """What follows from this round: a kernel's death, the next run, listening or not."""
        for worker in (self._kernel, self._batch):
            if worker is not None and worker.status is not None and self._link.has_room:
                self._bury(worker, worker.status)
        self._begin_next()
        self._listen(self._link.has_room)

    def _bury(self, worker: Worker, status: int) -> None:
        # Its last words first: it may have ended its run before it died.
        self._hear_out(worker)
        worker.close()
        if worker is self._kernel and self._completing is not None:
            self._answer_completion(self._completing, [])
            self._completing = None
        run = self._current
        if run is not None and worker is self._worker:
            self._pipes.drain(wholly=True)
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            code = os.WEXITSTATUS(status) if number is None else 128 + number
            spent = max(0.0, worker.cpu_seconds - worker.reported)
            # It may have ended by itself before our signal reached it.
            channel = worker.channel if number == signal.SIGKILL else None
            self._end(run, "kernel-died", code, spent, signal=number, channel=channel)
        if worker is self._kernel:
            self._state_lost = self._state_lost or worker.used
            # One that died without a run would die again at once; the next run gets its own.
            self._kernel = self._fork_kernel() if worker.used else None
        elif worker is self._batch:
            self._batch = None

    def _listen(self, listening: bool) -> None:
        if listening == self._listening:
            return
        self._listening = listening
        self._pipes.listen(listening)
        for worker in (self._kernel, self._batch):
            if worker is not None:
                worker.listen(listening)

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
            for worker in (self._kernel, self._batch):
                if worker is not None and pid == worker.pid:
                    worker.status = status
                    worker.cpu_seconds = usage.ru_utime + usage.ru_stime


def _text(value: Any) -> str:
    """A string that the kernel claims to have sent; lone surrogates would not survive the wire."""
    if not isinstance(value, str):
        raise GarbageError("text expected")
    return value.encode("utf-8", "replace").decode()


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise GarbageError("an object expected")
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
        raise GarbageError("a frame expected")
    return {"line": frame["line"], **{name: _text(frame[name]) for name in ("file", "name", "text")}}


def _commands(stages: Any) -> list[str | None]:
    """One shell command for each stage; None skips it."""
    if not isinstance(stages, list) or len(stages) != len(STAGES):
        raise ValueError("stages")
    return [None if command is None else str(command) for command in stages]
