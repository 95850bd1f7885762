"""`roost shell`: an interactive session on the terminal."""

import codeop
import contextlib
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from roost.cli.output import fail, note, print_failure
from roost.cli.screen import Running, Screen, ask
from roost.client.api import Api, find_target, session_path
from roost.client.blocking import SessionHandle, session
from roost.client.config import local_state_path
from roost.client.errors import Unreachable
from roost.client.worker import Worker
from roost.wire.errors import InvalidParameters, LimitExceeded, RoostError, SessionNotFound
from roost.wire.ids import new_run_id
from roost.wire.runs import InterruptOutcome

GRACE_S = 5.0
"""How long after an interrupt another one asks for more."""


@click.command()
@click.argument("name")
@click.option("--image", default="python", show_default=True, help="What it is made of, if there is none.")
def shell(name: str, image: str) -> None:
    """Work in the session NAME, line by line; it is made if there is none.

    Tab completes, Ctrl-C interrupts, Ctrl-D leaves. The session lives on, with all its variables.
    """
    if not sys.stdin.isatty():
        raise fail("a shell needs a terminal", hint=f"`roost run {image} -c CODE --name {name}` runs code without one")
    image = _image_of(name) or image
    with session(name, image, keep=True, on_wait=lambda why: note(f"waiting: {why}")) as handle:
        found = "found" if handle.existed else "made"
        note(f"{found} session {name} ({image}); Ctrl-D leaves it")
        converse(_reader(handle, language_of(image)), handle)
    note(f"session {name} lives on")
    note(f"hint: return with `roost shell {name}`, end it with `roost rm {name}`")


def language_of(image: str) -> str:
    """The language of an image, as its reference names it."""
    return image.rpartition("/")[2].partition(":")[0]


def is_incomplete(language: str, text: str) -> bool:
    """Whether more lines have to follow before this can be run. What is wrong is complete: its run will say why."""
    if language == "python":
        return _is_incomplete_python(text)
    if language in ("shell", "bash", "sh"):
        return _is_incomplete_shell(text)
    return False


def next_indent(text: str) -> str:
    """The blanks that the next line begins with."""
    line = text.rpartition("\n")[2]
    indent = line[: len(line) - len(line.lstrip())]
    return indent + ("    " if line.rstrip().endswith(":") else "")


def replaced_by(before: str, completion: str) -> int:
    """How many of the characters before the cursor a completion takes the place of."""
    for length in range(min(len(before), len(completion)), 0, -1):
        if before.endswith(completion[:length]):
            return length
    return 0


def _is_incomplete_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if codeop.compile_command(text, symbol="exec") is None:
                return True
    except (SyntaxError, ValueError, OverflowError):
        return False
    # A block goes on until a line that is empty.
    last = text.rpartition("\n")[2]
    return "\n" in text and last.strip() != "" and last[0].isspace()


def _is_incomplete_shell(text: str) -> bool:
    if re.search(r"(?<!\\)(\\\\)*\\$", text):
        return True
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def _image_of(name: str) -> str | None:
    """The image of the live session of this name, whatever is asked for."""

    async def look() -> str:
        async with Api(find_target()) as api:
            return str((await api.call("GET", session_path(name))).body["image"])

    worker = Worker()
    try:
        return worker.call(look())
    except SessionNotFound:
        return None
    finally:
        worker.stop()


def converse(read: Callable[[], str], handle: SessionHandle) -> None:
    """Run what is read, piece by piece, up to its end.

    Args:
        read: a piece of code; raises `EOFError` at the end, `KeyboardInterrupt` where a piece is given up.
    """
    while True:
        try:
            text = read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if not text.strip():
            continue
        run_id = new_run_id()
        try:
            screen = _PatientScreen(echo=True)
            screen.tell_end(screen.follow(handle.start(text, run_id=run_id)))
        except KeyboardInterrupt:  # before anybody knew that it runs, or behind its end
            with contextlib.suppress(RoostError, KeyboardInterrupt):
                handle.get_run(run_id).interrupt()
        except (LimitExceeded, InvalidParameters, Unreachable) as error:  # the session is still there
            print_failure(error)


def _reader(handle: SessionHandle, language: str) -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    prompts: PromptSession[str] = PromptSession(
        history=FileHistory(str(_history_file(language))),
        completer=_completer(handle),
        complete_while_typing=False,
        multiline=True,
        key_bindings=_bindings(language),
        prompt_continuation="... ",
    )
    return lambda: prompts.prompt(">>> ")


class _PatientScreen(Screen):
    """Interrupts once; who presses again soon is asked whether to use force."""

    _interrupted_at: float | None = None

    def interrupted(self, run: Running) -> None:
        now = time.monotonic()
        if self._interrupted_at is None or now - self._interrupted_at > GRACE_S:
            self._interrupted_at = now
            note("\ninterrupting; Ctrl-C again to end it by force")
            run.interrupt()
            return
        self._interrupted_at = None
        try:
            answer = ask("\nend its interpreter by force, and lose its variables? [y/N] ", False)
        except KeyboardInterrupt:
            return
        wants_force = (answer or "").strip().lower() in ("y", "yes")
        if run.interrupt(grace_s=0 if wants_force else None) is InterruptOutcome.ESCALATED:
            note("its interpreter was ended by force; its variables are gone")


def _history_file(language: str) -> Path:
    folder = local_state_path / "shell-history"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / (re.sub(r"[^A-Za-z0-9_.-]", "_", language) or "none")
    file.touch(mode=0o600)
    return file


def _completer(handle: SessionHandle):  # type: ignore[no-untyped-def] # a class of a library that is loaded late
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, ThreadedCompleter
    from prompt_toolkit.document import Document

    class SessionCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            before = document.text_before_cursor
            try:
                found = handle.complete(before)
            except RoostError:  # a session that cannot tell now completes nothing
                return
            for word in found:
                yield Completion(word, start_position=-replaced_by(before, word))

    return ThreadedCompleter(SessionCompleter())


def _bindings(language: str):  # type: ignore[no-untyped-def] # the same
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        document = buffer.document
        if document.is_cursor_at_the_end and not is_incomplete(language, document.text):
            buffer.validate_and_handle()
        else:
            indent = next_indent(document.text_before_cursor) if language == "python" else ""
            buffer.insert_text("\n" + indent)

    @bindings.add("escape", "enter")
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
