"""What all commands print alike: data to stdout, the rest to stderr, a `hint:` line after an error."""

import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from roost.wire.errors import RoostError


class Group(click.Group):
    """A group of commands that turns our errors into a message, a hint and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RoostError as error:
            print_error(error)
            ctx.exit(1)


def print_error(error: RoostError) -> None:
    note(f"error: {error.message}")
    if error.hint:
        note(f"hint: {error.hint}")


def note(text: str) -> None:
    """Tell people something that is not the command's result."""
    click.echo(text, err=True)


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
