"""`roost shell` on a terminal: a real server, a real sandbox, keys as a person presses them."""

import asyncio
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.servers import Caller

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)
CTRL_C, CTRL_D, TAB, ENTER = "\x03", "\x04", "\t", "\r"
DECORATION = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")
UP = "\x1b[A"


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = ""

    def press(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 30.0) -> str:
        """What has been shown since the last call, up to this text."""
        deadline = time.monotonic() + timeout_s
        while text not in (shown := DECORATION.sub("", self._seen)):
            assert self._is_ready(deadline), f"{text!r} is not in {shown!r}"
            self._seen += os.read(self._descriptor, 65536).decode(errors="replace")
        before, _, rest = shown.partition(text)
        self._seen = rest
        return before

    def run(self, text: str, shown: str) -> None:
        """Enter something, and wait for what it shows and the next prompt."""
        self.press_until_prompt(text + ENTER, shown)

    def press_until_prompt(self, keys: str, shown: str) -> None:
        """Press what brings one prompt more, and no key behind it.

        One that comes between two prompts is not read as a key of the second: the terminal makes a NUL of Ctrl-D.
        """
        self.press(keys)
        self.wait_for(shown)
        self.wait_for(">>>")

    def read_rest(self, timeout_s: float = 30.0) -> str:
        """What is shown up to the end of the program."""
        deadline = time.monotonic() + timeout_s
        while True:
            assert self._is_ready(deadline), f"it goes on after {self._seen!r}"
            try:
                piece = os.read(self._descriptor, 65536)
            except OSError:  # how Linux says that nobody has the other side
                return self._seen
            self._seen += piece.decode(errors="replace")

    def _is_ready(self, deadline: float) -> bool:
        """Whether there is something to read, or nobody at the other side any more, in time."""
        return bool(select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))[0])


@contextmanager
def a_shell(server: Caller, home: Path, *arguments: str) -> Iterator[tuple[Terminal, "subprocess.Popen[bytes]"]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BACKEND_", "ROOST_", "XDG"))}
    target = server.target
    environ = kept | {
        "BACKEND_ENDPOINT": target.endpoint,
        "BACKEND_ACCESS_KEY": target.access_key,
        "BACKEND_SECRET_KEY": target.secret_key,
        "HOME": str(home),
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm",
    }
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    program = [sys.executable, "-m", "roost", "shell", *arguments]
    with subprocess.Popen(
        program, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            yield Terminal(ours), process
            process.wait(30)
        finally:
            process.kill()
            os.close(ours)


@pytest.fixture
async def use(server: Caller, tmp_path: Path) -> Callable[..., "asyncio.Future[str]"]:
    """Runs what a person does in a thread of its own, since the server is in this one; gives what was shown last."""

    async def run(act: Callable[[Terminal], None], *arguments: str) -> str:
        def sit() -> str:
            with a_shell(server, tmp_path, *arguments) as (terminal, process):
                terminal.wait_for(">>>")
                act(terminal)
                terminal.press(CTRL_D)
                rest = terminal.read_rest()
                assert process.wait(30) == 0, rest
                return DECORATION.sub("", rest)

        return await asyncio.to_thread(sit)

    return run  # type: ignore[return-value] # a coroutine function is one of its many


async def test_code_is_run_completed_and_remembered_and_the_session_lives_on(
    server: Caller, use: Callable[..., "asyncio.Future[str]"], tmp_path: Path
) -> None:
    def first(terminal: Terminal) -> None:
        terminal.run("colourful = 20; print('s' + 'et')", "set")
        terminal.run("colourful + 1", "21")
        terminal.press("colour" + TAB)
        terminal.wait_for("ful")
        terminal.run(" * 2", "40")
        terminal.run("1 / 0", "ZeroDivisionError")
        terminal.run("for i in range(2):" + ENTER + "print('line', i)" + ENTER, "line 1")

    def second(terminal: Terminal) -> None:
        terminal.press(UP)
        terminal.run("", "line 1")
        terminal.run("colourful + 5", "25")

    said = await use(first, "class-7")
    [session] = (await server("GET", "/session")).body
    await use(second, "class-7", "--image", "shell")

    assert "hint: return with `roost shell class-7`, end it with `roost rm class-7`" in said
    assert (session["name"], session["status"]) == ("class-7", "RUNNING")
    assert "for i in range(2):" in (tmp_path / ".local/state/backend.ai/shell-history/python").read_text()


async def test_prompts_are_answered_and_passwords_are_not_shown(
    server: Caller, use: Callable[..., "asyncio.Future[str]"]
) -> None:
    def act(terminal: Terminal) -> None:
        terminal.press("print('hi', input('na' + 'me? '))" + ENTER)
        terminal.wait_for("name? ")
        terminal.press("Ann\n")
        terminal.wait_for("hi Ann")
        terminal.wait_for(">>>")
        terminal.press("import getpass; print(len(getpass.getpass('p' + 'in? ')))" + ENTER)
        terminal.wait_for("pin? ")
        terminal.press("s3cret\n")
        shown = terminal.wait_for("6")
        assert "s3cret" not in shown
        terminal.wait_for(">>>")
        terminal.press("input('mo' + 're? ')" + ENTER)
        terminal.wait_for("more? ")
        terminal.press_until_prompt(CTRL_D, "EOFError")

    await use(act, "class-7")


async def test_interrupts_stop_a_run_and_then_its_interpreter(
    server: Caller, use: Callable[..., "asyncio.Future[str]"]
) -> None:
    def act(terminal: Terminal) -> None:
        terminal.press("x = 1; print('o' + 'n'); import time; time.sleep(60)" + ENTER)
        terminal.wait_for("on")
        terminal.press_until_prompt(CTRL_C, "KeyboardInterrupt")
        terminal.run("print(x + 41)", "42")
        terminal.press("half" + CTRL_C)
        terminal.wait_for(">>>")
        deaf = "import signal; signal.signal(2, signal.SIG_IGN); print('de' + 'af')\nwhile True: time.sleep(0.01)\n"
        terminal.press(f"exec({deaf!r})" + ENTER)
        terminal.wait_for("deaf")
        terminal.press(CTRL_C)
        terminal.wait_for("Ctrl-C again")
        terminal.press(CTRL_C)
        terminal.wait_for("[y/N] ")
        terminal.press("y\n")
        terminal.wait_for("its variables are gone")
        terminal.wait_for(">>>")
        terminal.run("x", "NameError")

    await use(act, "class-7")


async def test_a_shell_speaks_the_language_of_its_image(
    server: Caller, use: Callable[..., "asyncio.Future[str]"]
) -> None:
    def act(terminal: Terminal) -> None:
        terminal.run("here=$((40 + 2)); echo s''et", "set")
        terminal.run("echo 'two" + ENTER + "lines' $here", "lines 42")

    await use(act, "class-7", "--image", "shell")


def test_without_a_terminal_it_says_what_to_do() -> None:
    environ = {**os.environ, "BACKEND_ENDPOINT": "http://127.0.0.1:1"}
    program = [sys.executable, "-m", "roost", "shell", "class-7"]
    done = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=60)

    assert done.returncode == 1
    assert "hint: `roost run python -c CODE --name class-7`" in done.stderr
