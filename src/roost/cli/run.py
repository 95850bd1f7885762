"""`roost run`."""

import getpass
import sys
from pathlib import Path

import click

from roost.cli.output import note
from roost.client.handle import Run, SessionHandle, read_end, session
from roost.wire.mime import PLAIN, sentence_of
from roost.wire.runs import Event, EventKind, RunEnd, RunStatus


@click.command()
@click.argument("image")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-c", "--code", help="Code to run.")
@click.option("-t", "--name", help="Use the session of this name, and keep it.")
@click.pass_context
def run(ctx: click.Context, image: str, files: tuple[Path, ...], code: str | None, name: str | None) -> None:
    """Run code in a session of IMAGE and exit as it does.

    All FILES are copied into the session. Without -c, the first of them is the program.
    """
    if code is None and not files:
        raise click.UsageError("nothing to run: pass -c CODE or a file")
    program = code if code is not None else files[0].read_text()
    with session(name, image, keep=name is not None, on_wait=lambda why: note(f"waiting: {why}")) as handle:
        end = _run(handle, files, program)
    if end.reason is not None and end.status is not RunStatus.OK:
        note(f"error: {end.reason.sentence}")
        if end.reason.hint:
            note(f"hint: {end.reason.hint}")
    ctx.exit(end.exit_code)


def _run(handle: SessionHandle, files: tuple[Path, ...], program: str) -> RunEnd:
    for file in files:
        handle.upload(file)
    started = handle.start(program, echo=False)
    seen = 0
    while True:
        try:
            for event in started.events(after=seen):
                seen = event.seq
                _show(started, event)
                if event.kind is EventKind.END:
                    return read_end(event)
        except KeyboardInterrupt:
            started.interrupt()  # and then see how it ends


def _show(started: Run, event: Event) -> None:
    match event.kind:
        case EventKind.STDOUT:
            click.echo(event.data, nl=False)
        case EventKind.STDERR:
            click.echo(event.data, nl=False, err=True)
        case EventKind.DISPLAY:
            click.echo(event.data["mime"].get(PLAIN, ""))
            if (sentence := sentence_of(event.data["mime"])) is not None:
                note(f"note: {sentence}")
        case EventKind.PROMPT:
            text = _answer(str(event.data.get("text", "")), bool(event.data.get("password")))
            started.input(text, prompt=int(event.data["prompt"]))
        case EventKind.GAP:
            note(f"note: {event.data.get('bytes')} bytes of output were dropped")
        case _:
            pass


def _answer(prompt: str, is_password: bool) -> str | None:
    """A line from the terminal or the pipe; None at its end."""
    if is_password and sys.stdin.isatty():
        try:
            return getpass.getpass(prompt)
        except EOFError:
            return None
    click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None
