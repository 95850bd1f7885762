"""The shell kernel: one Bash that lives between runs.

It is an interactive one without a terminal, because only such a Bash goes back to reading when an interrupt ends what
it executes. For each run it reads two lines: the first executes what comes on a descriptor of its own, so that code
with open quotes or a here document cannot swallow what follows; the second reports the status.
"""

from __future__ import annotations

import os
import traceback

from .child import Child, Conversation
from .settling import leave_runner
from .words import Words, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn

    from .worker import Settings
else:
    import _signal as signal

_CODE, _STATUS, _INPUT, _ERRORS = 60, 61, 62, 63
# Bash says "exit" on stderr when an interactive one ends.
_SETUP = f"""\
PS1= PS2=; unset PROMPT_COMMAND; set +H +o history; shopt -u checkwinsize
exit() {{
    local __roost_status=$?
    if [ "$BASHPID" = "$$" ]; then builtin exit "${{@:-$__roost_status}}" 2>/dev/null; fi
    builtin exit "${{@:-$__roost_status}}"
}}
exec 2>&{_ERRORS} {_ERRORS}>&-
"""
_RUN = (
    f'IFS= read -r -d "" -u {_CODE} __roost_code && '
    f'eval "$__roost_code" 0<&{_INPUT} {_CODE}<&- {_STATUS}>&- {_INPUT}<&-\n'
    f'printf "%s\\n" "$?" >&{_STATUS}\n'
)
_INTERRUPTED = 128 + signal.SIGINT


def main(control: int, sync: int, stdout: int, stderr: int, settings: Settings) -> NoReturn:
    """Become the kernel: called in the child right after the fork, and never returns."""
    code = 1
    try:
        leave_runner(control, sync, stdout, stderr)
        _Shell(Words(control), settings).serve()
        code = 0
    except EOFError:
        pass  # the runner is gone, and with it whoever wants to know
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


class _Shell:
    def __init__(self, words: Words, settings: Settings) -> None:
        self._words = words
        self._conversation = Conversation(words)
        lines, self._lines = os.pipe()
        code, self._code = os.pipe()
        self._status, status = os.pipe()
        silent = os.open("/dev/null", os.O_WRONLY)
        argv = [settings.program, "--noprofile", "--norc", "--noediting", "-i"]
        # What an interactive Bash says about the missing terminal is of no use to anybody.
        descriptors = {0: lines, 2: silent, _CODE: code, _STATUS: status, _ERRORS: 2}
        self._bash = Child(argv, settings.environ, descriptors, input_as=_INPUT)
        for descriptor in (lines, code, status, silent):
            os.close(descriptor)
        write_all(self._lines, _SETUP.encode())

    def serve(self) -> None:
        """Execute what the runner sends, until it closes the socket or Bash ends."""
        while True:
            word = self._words.receive()
            if word is None:
                return
            if word["op"] == "run" and not self._execute(word["code"]):
                return
            if word["op"] == "complete":
                self._words.send({"op": "completions", "completions": []})

    def _execute(self, code: str) -> bool:
        """Execute one run; False where Bash has ended of it."""
        before = self._bash.cpu_so_far()
        self._conversation.interrupted = False
        self._bash.asked = False
        write_all(self._lines, _RUN.encode())
        sent = code.replace("\0", "").encode("utf-8", "surrogateescape") + b"\0"
        try:
            lives = not self._conversation.follow(self._bash, self._status, (self._code, sent))
        finally:
            cpu = max(0.0, self._bash.cpu_so_far() - before)
        status = self._read_status() if lives else self._bash.exit_code()
        interrupted = self._conversation.interrupted and status == _INTERRUPTED
        how = "interrupted" if interrupted else "exited" if status else "ok"
        self._words.send({"op": "end", "status": how, "exit_code": status, "cpu_s": cpu})
        return lives

    def _read_status(self) -> int:
        text = os.read(self._status, 64).split()
        return int(text[-1]) & 0xFF
