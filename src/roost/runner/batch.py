"""The worker of one batch run: clean, build and exec, each a shell command in a process of its own."""

from __future__ import annotations

import os

from . import system
from .child import Child, Conversation
from .defaults import MISSING, Missing, default_way
from .protocol import STAGES
from .settling import become_worker
from .words import Words, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn

    from .worker import Settings
else:
    import _signal as signal

_SHELL = "/bin/sh"
_NOT_STARTED = -1
_INTERRUPTED = 128 + signal.SIGINT


def main(control: int, sync: int, stdout: int, stderr: int, settings: Settings) -> NoReturn:
    """Become the worker: called in the child right after the fork, and never returns."""

    def work() -> None:
        # Whoever leaves his parent and our group stays below us, and can be told from what others have started.
        system.become_subreaper()
        words = Words(control)
        word = words.receive()
        if word is not None:
            _Batch(words, sync, settings).execute(word["stages"])

    become_worker((control, sync, stdout, stderr), work)


class _Batch:
    def __init__(self, words: Words, sync: int, settings: Settings) -> None:
        self._words = words
        self._sync = sync
        self._settings = settings
        self._conversation = Conversation(words)
        self._environ = {**settings.environ, "PYTHONUNBUFFERED": "1"}
        self._cpu_seconds = 0.0

    def execute(self, commands: list[str | None]) -> None:
        """Execute the stages in their order; every one reports, also a skipped one."""
        code = 0
        for stage, command in zip(STAGES[:-1], commands):
            code, number = self._execute(stage, command)
            if self._conversation.interrupted and code:
                self._end("interrupted", _INTERRUPTED, number)
                return
            self._words.send({"op": "stage", "stage": stage, "exit_code": code})
            # Else what the next stage writes could be read before that.
            os.write(self._sync, b"1")
            if not os.read(self._sync, 1):
                raise EOFError
        if code:
            self._complain("the build has failed, so nothing is executed")
            self._end("exited", MISSING, None)
            return
        self._environ["_BACKEND_BATCH_MODE"] = "1"
        code, number = self._execute(STAGES[-1], commands[-1])
        interrupted = self._conversation.interrupted and code == _INTERRUPTED
        self._end("interrupted" if interrupted else "exited" if code else "ok", code, number)

    def _execute(self, stage: str, command: str | None) -> tuple[int, int | None]:
        """Exit code of a stage, and the signal that ended it."""
        if not command:
            return 0, None
        if command == "*":
            way = default_way(stage, self._settings.language, self._settings.program, self._settings.home)
            if isinstance(way, Missing):
                self._complain(way.sentence)
                return MISSING, None
            if way is None:
                return 0, None
            command = way
        return self._run(command)

    def _run(self, command: str) -> tuple[int, int | None]:
        try:
            child = Child([_SHELL, "-c", command], self._environ)
        except OSError as error:
            self._complain(f"no process could be started: {error.strerror}")
            return _NOT_STARTED, None
        try:
            self._conversation.follow(child)
        finally:
            child.close()
        self._cpu_seconds += child.cpu_seconds
        return child.exit_code(), child.signal()

    def _complain(self, sentence: str) -> None:
        write_all(2, f"{sentence}\n".encode("utf-8", "replace"))

    def _end(self, status: str, code: int, number: int | None) -> None:
        end = {"op": "end", "status": status, "exit_code": code, "cpu_s": self._cpu_seconds}
        self._words.send({**end, "signal": number} if number is not None else end)
