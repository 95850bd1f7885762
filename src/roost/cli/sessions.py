"""`roost ps`, `why`, `rm`: sessions."""

import asyncio
from typing import Any

import click

from roost.cli.output import note, print_table
from roost.client.api import Answer, Api, find_target, session_path
from roost.client.errors import NotUnderstood


@click.command()
@click.option("-a", "--all", "show_all", is_flag=True, help="Ended ones too.")
def ps(show_all: bool) -> None:
    """List sessions, with the reason of each one's state."""
    found = _items(_call("GET", "/session", {"status": "all"} if show_all else None))
    rows = [[_text(item, "name"), _text(item, "status"), _text(item, "image"), _reason(item)] for item in found]
    if not rows:
        note("no sessions")
    print_table(["NAME", "STATUS", "IMAGE", "REASON"], rows)


@click.command()
@click.argument("name")
def why(name: str) -> None:
    """Tell what happened to a session, when, and why."""
    for item in _items(_call("GET", session_path(name, "history"))):
        click.echo(f"{_text(item, 'at')}  {_text(item, 'sentence') or _text(item, 'code')}")
        if item.get("hint"):
            click.echo(f"    hint: {item['hint']}")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm(names: tuple[str, ...]) -> None:
    """End sessions."""
    for name in names:
        _call("DELETE", session_path(name))
        note(f"ended {name}")


def _call(method: str, path: str, params: dict[str, str] | None = None) -> Any:
    async def call() -> Answer:
        async with Api(target) as api:
            return await api.call(method, path, params=params)

    target = find_target()
    return asyncio.run(call()).body


def _items(body: Any) -> list[dict[str, Any]]:
    """The entries of a list, whether it is bare or under `items`."""
    items = body.get("items") if isinstance(body, dict) else body
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise NotUnderstood(f"expected a list, got {body!r:.80}")
    return items


def _text(item: dict[str, Any], key: str) -> str:
    return "" if item.get(key) is None else str(item[key])


def _reason(item: dict[str, Any]) -> str:
    reason = item.get("reason")
    return _text(reason, "sentence") if isinstance(reason, dict) else _text(item, "status_info")
