"""Files of sessions: `upload`, `download`, `ls`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from roost.cli.connection import connected
from roost.cli.options import owner_option
from roost.cli.output import fail, print_items, say, wants_json
from roost.client.errors import NotUnderstood


@click.command()
@click.argument("session")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@owner_option
def upload(session: str, files: tuple[Path, ...], owner: str | None) -> None:
    """Copy FILES and folders into SESSION, under their names relative to this folder."""
    with connected() as api:
        api.ComputeSession(session, owner).upload(files, basedir=Path.cwd(), show_progress=not wants_json())
    if wants_json():
        print_items([{"name": str(file)} for file in files], {})
    else:
        say(f"uploaded {_counted(len(files))} to {session}")


@click.command()
@click.argument("session")
@click.argument("files", nargs=-1, required=True)
@click.option("--dest", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="The folder to copy to.")
@owner_option
def download(session: str, files: tuple[str, ...], dest: Path, owner: str | None) -> None:
    """Copy FILES and folders out of SESSION."""
    with connected() as api:
        found = api.ComputeSession(session, owner).download(files, dest=dest, show_progress=not wants_json())
    if wants_json():
        print_items([{"name": str(dest / name)} for name in found["file_names"]], {})
    else:
        say(f"downloaded {_counted(len(files))} to {dest.absolute()}")


@click.command()
@click.argument("session")
@click.argument("path", default="/home/work")
@owner_option
def ls(session: str, path: str, owner: str | None) -> None:
    """List a folder of SESSION; its home, if no PATH is given."""
    with connected() as api:
        told = api.ComputeSession(session, owner).list_files(path)
    if told.get("errors"):
        raise fail(str(told["errors"]))
    rows = [listed(entry) for entry in _entries(told.get("files"))]
    columns = {"name": "name", "size": "size", "modified": "modified", "mode": "mode"}
    print_items(rows, columns)


def listed(entry: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a file."""
    modified = datetime.fromtimestamp(int(float(entry.get("mtime") or 0)), UTC)
    return {
        "name": entry.get("filename"),
        "size": entry.get("size"),
        "modified": modified.strftime("%Y-%m-%d %H:%M:%S"),
        "mode": entry.get("mode"),
    }


def _entries(text: Any) -> list[dict[str, Any]]:
    try:
        return [dict(entry) for entry in json.loads(text or "[]")]
    except (ValueError, TypeError) as error:
        raise NotUnderstood(f"not a list of files: {text!r:.100}") from error


def _counted(n: int) -> str:
    return "1 file" if n == 1 else f"{n} files"
