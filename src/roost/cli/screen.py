"""Shows runs to people: their output, their prompts, their ends."""

import getpass
import sys
from collections.abc import Iterator
from typing import IO, Protocol

import click

from roost.client.results import read_end
from roost.wire.mime import PLAIN, sentence_of
from roost.wire.runs import Event, EventKind, InterruptOutcome, RunEnd


class Running(Protocol):
    """A run that was started, wherever it runs."""

    def events(self, after: int = 0) -> Iterator[Event]:
        """Its events with a seq above `after`, up to its end; may be asked again after an interrupt."""

    def input(self, text: str | None, *, prompt: int | None = None) -> None:
        """Answer its prompt; None is end-of-file."""

    def interrupt(self, *, grace_s: float | None = None) -> InterruptOutcome:
        """Tell it to stop."""


class Screen:
    """Where one run is shown: the terminal, or files.

    Args:
        asks: whether somebody answers its prompts; else input ends at the first.
    """

    def __init__(
        self,
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
        *,
        quiet: bool = False,
        echo: bool = False,
        asks: bool = True,
    ) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._quiet = quiet
        self._echo = echo
        self._asks = asks

    def follow(self, run: Running) -> RunEnd:
        """Show a run up to its end. Ctrl-C interrupts it, and what comes of that is shown too."""
        seen, is_interrupted = 0, False
        while True:
            try:
                if is_interrupted:  # in here, so that another Ctrl-C meanwhile counts too
                    is_interrupted = False
                    self.interrupted(run)
                for event in run.events(after=seen):
                    seen = event.seq
                    self.show(run, event)
                    if event.kind is EventKind.END:
                        return read_end(event)
            except KeyboardInterrupt:
                is_interrupted = True

    def interrupted(self, run: Running) -> None:
        """Ctrl-C was pressed."""
        run.interrupt()

    def show(self, run: Running, event: Event) -> None:
        """Show one event; a prompt is answered."""
        match event.kind:
            case EventKind.STDOUT:
                click.echo(event.data, file=self._stdout, nl=False)
            case EventKind.STDERR:
                click.echo(event.data, file=self._stderr, nl=False, err=True)
            case EventKind.RESULT if self._echo:
                self._show_bundle({PLAIN: event.data.get("text", ""), **event.data.get("mime", {})})
            case EventKind.DISPLAY:
                self._show_bundle(event.data["mime"])
            case EventKind.STAGE:
                self.progress(f"stage {event.data['stage']} ended with exit code {event.data['exit_code']}")
            case EventKind.PROMPT:
                prompt, is_password = str(event.data.get("text", "")), bool(event.data.get("password"))
                text = ask(prompt, is_password) if self._asks else None
                run.input(text, prompt=int(event.data["prompt"]))
            case EventKind.GAP:
                self._note(f"note: {event.data.get('bytes')} bytes of output were dropped")
            case _:
                pass

    def progress(self, text: str) -> None:
        """Tell how far things are, unless nobody wants to know."""
        if not self._quiet:
            self._note(text)

    def tell_end(self, end: RunEnd) -> None:
        """Tell why a run ended, where there is more to tell than its output does."""
        if end.reason is None or end.exit_code == 0:
            return
        self._note(f"error: {end.reason.sentence}")
        if end.reason.hint:
            self._note(f"hint: {end.reason.hint}")

    def _show_bundle(self, bundle: dict[str, str]) -> None:
        click.echo(bundle.get(PLAIN, ""), file=self._stdout)
        if (sentence := sentence_of(bundle)) is not None:
            self._note(f"note: {sentence}")

    def _note(self, text: str) -> None:
        click.echo(text, file=self._stderr, err=True)


def ask(prompt: str, is_password: bool) -> str | None:
    """A line from the terminal or the pipe; None at its end."""
    if is_password and sys.stdin.isatty():
        try:
            return getpass.getpass(prompt)
        except EOFError:
            return None
    click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None
