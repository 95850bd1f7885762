"""The shell kernel: one Bash that lives between runs.

It is an interactive one without a terminal, because only such a Bash goes back to reading when an interrupt ends what
it executes. For each run it reads two lines: the first executes what comes on a descriptor of its own, so that code
with open quotes or a here document cannot swallow what follows; the second reports the status.
"""

from __future__ import annotations

import os

from .child import Child, Conversation, holds
from .settling import become_worker
from .words import Words, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn

    from .worker import Settings
else:
    import _signal as signal

_CODE, _STATUS, _INPUT, _ERRORS = 60, 61, 62, 63
# A line without quotes, since an interrupt can cost it its beginning.
_REPORT = "__roost_report"
# Bash says "exit" on stderr when an interactive one ends.
_SETUP = f"""\
PS1= PS2=; unset PROMPT_COMMAND; set +H +o history; shopt -u checkwinsize
exit() {{
    local __roost_status=$?
    if [ "$BASHPID" = "$$" ]; then builtin exit "${{@:-$__roost_status}}" 2>/dev/null; fi
    builtin exit "${{@:-$__roost_status}}"
}}
{_REPORT}() {{ printf "%s\\n" "${{1:-$?}}" >&{_STATUS}; }}
exec 2>&{_ERRORS} {_ERRORS}>&-
"""
_RUN = (
    f'IFS= read -r -d "" -u {_CODE} __roost_code && '
    f'eval "$__roost_code" 0<&{_INPUT} {_CODE}<&- {_STATUS}>&- {_INPUT}<&-\n{_REPORT}\n'
)
_INTERRUPTED = 128 + signal.SIGINT


def main(control: int, sync: int, stdout: int, stderr: int, settings: Settings) -> NoReturn:
    """Become the kernel: called in the child right after the fork, and never returns."""
    become_worker((control, sync, stdout, stderr), lambda: _Shell(Words(control), settings).serve())


class _Shell:
    def __init__(self, words: Words, settings: Settings) -> None:
        self._words = words
        self._settings = settings
        self._conversation = Conversation(words)
        self._bash = _Bash(settings)

    def serve(self) -> None:
        """Execute what the runner sends, until it closes the socket."""
        while True:
            word = self._words.receive()
            if word is None:
                return
            if word["op"] == "run":
                self._execute(word["code"])
            elif word["op"] == "complete":
                self._words.send({"op": "completions", "completions": []})

    def _execute(self, code: str) -> None:
        bash = self._bash
        before = bash.child.cpu_so_far()
        self._conversation.interrupted = False
        has_ended = self._conversation.follow(bash.child, bash.status, bash.begin(code), bash.report_again)
        cpu = max(0.0, bash.child.cpu_so_far() - before)
        status = bash.child.exit_code() if has_ended else bash.read_status()
        if has_ended:
            bash.close()
            self._bash = _Bash(self._settings)
        interrupted = self._conversation.interrupted and status == _INTERRUPTED
        how = "interrupted" if interrupted else "exited" if status else "ok"
        self._words.send({"op": "end", "status": how, "exit_code": status, "cpu_s": cpu, "lost": has_ended})


class _Bash:
    """One Bash and the pipes to it."""

    def __init__(self, settings: Settings) -> None:
        lines, self._lines = os.pipe()
        code, self._code = os.pipe()
        self.status, status = os.pipe()
        silent = os.open("/dev/null", os.O_WRONLY)
        argv = [settings.program, "--noprofile", "--norc", "--noediting", "-i"]
        # What an interactive Bash says about the missing terminal is of no use to anybody.
        descriptors = {0: lines, 2: silent, _CODE: code, _STATUS: status, _ERRORS: 2}
        self.child = Child(argv, settings.environ, descriptors, input_as=_INPUT)
        for descriptor in (lines, code, status, silent):
            os.close(descriptor)
        self._tell(_SETUP)

    def begin(self, code: str) -> tuple[int, bytes]:
        """Have it read code; answers where to write what."""
        self.child.asked = False
        self._tell(_RUN)
        return self._code, code.replace("\0", "").encode("utf-8", "surrogateescape") + b"\0"

    def report_again(self) -> None:
        """Have it report what an interrupt between two of its lines has kept it from reporting."""
        is_back = self.child.awaits(self._lines) and not holds(self._lines)
        # In this order: it reports before it goes back to reading.
        if is_back and not holds(self.status):
            self._tell(f"{_REPORT} {_INTERRUPTED}\n")

    def read_status(self) -> int:
        """The exit status that it has reported."""
        return int(os.read(self.status, 64).split()[-1]) & 0xFF

    def close(self) -> None:
        """Let go of one that has ended."""
        self.child.close()
        for descriptor in (self._lines, self._code, self.status):
            os.close(descriptor)

    def _tell(self, lines: str) -> None:
        try:
            write_all(self._lines, lines.encode())
        except BrokenPipeError:
            pass  # it has ended, which `follow` sees
