"""What all commands print alike: data to stdout, the rest to stderr, a `hint:` line after an error.

`roost` and `backend.ai` share commands but not their manners: the style of the root command decides how an error reads.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from roost.cli.pretty import lines_of, print_fail, print_info
from roost.client.errors import Unreachable, problem_to_error
from roost.client.exceptions import ArgumentError, BackendAPIError, BackendError
from roost.wire.errors import RoostError

EXPECTED = (RoostError, BackendError, ArgumentError, aiohttp.ClientError, OSError)
"""What may go wrong without anything being wrong with the command itself."""


class Group(click.Group):
    """A group of commands that turns our errors into a message, a hint and exit code 1."""

    is_compatible = False
    """Whether errors read as those of the compatible command line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            die_of_interrupt()
        except BrokenPipeError:  # whoever read has gone; click has an answer to this
            raise
        except EXPECTED as error:
            print_failure(error)
            ctx.exit(1)


def die_of_interrupt() -> None:
    """End as a program that SIGINT killed, so that shells and scripts notice."""
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def choose_output(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Remember whether results are to be JSON."""
    ctx.ensure_object(dict)["json"] = value == "json"
    return value


output_option = click.option(
    "--output",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    callback=choose_output,
    expose_value=False,
    is_eager=True,
    help="How results are written.",
)


def wants_json() -> bool:
    """Whether results are to be JSON."""
    found = click.get_current_context().find_root().obj
    return bool(found and found.get("json"))


def is_compatible() -> bool:
    """Whether this runs as `backend.ai`."""
    return bool(getattr(click.get_current_context().find_root().command, "is_compatible", False))


def print_failure(error: BaseException, *, about: str = "") -> None:
    """Print what went wrong, in the style of the root command; with `--output json` on stdout too.

    Args:
        about: which of several things it happened to.
    """
    shown = _translated(error)
    before = f"{about}: " if about else ""
    if wants_json():
        click.echo(json.dumps({"error": before + sentence_of(shown)}))
        return
    if isinstance(error, BackendAPIError) and is_compatible():
        first, *rest = lines_of(error)
        print_fail(before + first)
        for line in rest:
            note(f"  {line}")
    elif is_compatible():
        print_fail(f"{before}{type(error).__name__}: {sentence_of(shown)}")
    else:
        note(f"error: {before}{sentence_of(shown)}")
    if isinstance(shown, RoostError) and shown.hint and not is_compatible():
        note(f"hint: {shown.hint}")


def print_error(error: RoostError) -> None:
    """Print one of our errors in the style of the root command."""
    print_failure(error)


def failure_of(error: BaseException) -> str:
    """What went wrong, in one line, whatever it was raised as."""
    return sentence_of(_translated(error))


def sentence_of(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, RoostError):
        return error.message
    return str(error.args[0]) if isinstance(error, BackendError) and error.args else str(error)


def fail(message: str, *, hint: str | None = None) -> click.exceptions.Exit:
    """Print a failure that is ours to tell; raise what this returns."""
    print_failure(RoostError(message, hint=hint))
    return click.exceptions.Exit(1)


def note(text: str) -> None:
    """Tell people something that is not the command's result."""
    click.echo(text, err=True)


def say(text: str) -> None:
    """Tell what was done: with a mark for `backend.ai`, plainly for `roost`."""
    if is_compatible():
        print_info(text)
    else:
        note(text)


def print_items(items: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, total: int | None = None) -> None:
    """Print a list: as JSON, where that was asked for, else as a table of the columns (key → title)."""
    if wants_json():
        found = {"count": len(items), "total_count": total if total is not None else len(items), "items": list(items)}
        click.echo(json.dumps(found, indent=2, default=str))
        return
    rows = [["" if item.get(key) is None else str(item[key]) for key in columns] for item in items]
    if is_compatible():
        _print_dashed(list(columns.values()), rows)
    else:
        print_table([title.upper() for title in columns.values()], rows)


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A table for people on a terminal, values between tabs for programs; nothing where there are no rows."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    if rows:
        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)


def _print_dashed(columns: list[str], rows: list[list[str]]) -> None:
    if not rows:
        return
    widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]
    for row in (columns, ["-" * width for width in widths], *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _translated(error: BaseException) -> BaseException:
    """The error of ours that another stands for, where there is one."""
    if isinstance(error, BackendAPIError):
        return problem_to_error(error.status, error.data)
    if isinstance(error.__cause__, aiohttp.ClientConnectionError):
        return Unreachable(sentence_of(error))
    return error
