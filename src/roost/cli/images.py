"""`roost image`: what sessions can be made of."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click

from roost.cli.output import Group, note, print_items, print_table, wants_json
from roost.client.api import Api, Target, alias_path, find_target, image_path
from roost.client.errors import NotUnderstood, Unreachable, problem_to_error

A_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group)
def image() -> None:
    """List, build, name and remove images."""


@image.command()
def ls() -> None:
    """List images: this machine's own, and those with packages."""
    found = _call("GET", "/image")
    if wants_json():
        print_items(found, {})
        return
    rows = [
        [str(one["reference"]), ", ".join(one["aliases"]), str(one["kind"]), _size(one), str(one["created_at"] or "")]
        for one in found
    ]
    print_table(["IMAGE", "ALSO", "KIND", "SIZE", "BUILT"], rows)


@image.command()
@click.argument("reference")
def inspect(reference: str) -> None:
    """Print all that is known of an image, as JSON."""
    click.echo(json.dumps(_call("GET", image_path(reference)), indent=2))


@image.command()
@click.argument("name", metavar="NAME[:TAG]")
@click.option("-r", "--requirements", type=A_FILE, help="A requirements.txt.")
@click.option("-p", "--pyproject", type=A_FILE, help="A pyproject.toml; its dependencies count.")
@click.option("--python", help="The version of Python, such as 3.11.  [default: the newest]")
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Limits and features.")
@click.option("--sdist", is_flag=True, help="Build what has no wheels (not yet).")
def build(
    name: str,
    requirements: Path | None,
    pyproject: Path | None,
    python: str | None,
    labels: tuple[str, ...],
    sdist: bool,
) -> None:
    """Build an image of Python packages, and print its reference."""
    if (requirements is None) == (pyproject is None):
        raise click.UsageError("pass either -r FILE or -p FILE")
    body = {
        "name": name,
        "requirements": requirements.read_text() if requirements is not None else None,
        "pyproject": pyproject.read_text() if pyproject is not None else None,
        "python": python,
        "labels": dict(_label(text) for text in labels),
        "sdist": sdist,
    }
    built = asyncio.run(_build(find_target(), body))
    note(f"built {built['reference']}: {_size(built)}, digest {str(built['digest'])[:12]}")
    if wants_json():
        print_items([built], {})
    else:
        click.echo(built["reference"])


@image.command()
@click.argument("references", nargs=-1, required=True, metavar="NAME[:TAG]...")
def rm(references: tuple[str, ...]) -> None:
    """Remove images that were built, and packages that nobody else needs."""
    for reference in references:
        _call("DELETE", image_path(reference))
        note(f"removed {reference}")


@image.command()
@click.argument("name")
@click.argument("target", required=False)
@click.option("-d", "--delete", is_flag=True, help="Forget the alias.")
def alias(name: str, target: str | None, delete: bool) -> None:
    """Let NAME stand for the image or alias TARGET."""
    if delete == (target is not None):
        raise click.UsageError("pass either a TARGET or --delete")
    if delete:
        _call("DELETE", alias_path(name))
        note(f"{name} is no alias any more")
    else:
        made = _call("PUT", alias_path(name), {"target": target})
        note(f"{name} is {made['image']}")


async def _build(target: Target, body: dict[str, Any]) -> dict[str, Any]:
    """Build, and tell what the builder says on the way; the image."""
    async with Api(target) as api, aclosing(api.build_image(body)) as messages:
        async for message in messages:
            said = json.loads(message.data)
            if message.event == "problem":
                raise problem_to_error(400, said)
            if message.event == "image":
                return dict(said)
            note(str(said["text"]))
    raise Unreachable("the server ended before the image was built", hint="build it again")


def _call(method: str, path: str, body: Any = None) -> Any:
    async def call() -> Any:
        async with Api(target) as api:
            return (await api.call(method, path, body=body)).body

    target = find_target()
    found = asyncio.run(call())
    if method == "GET" and not isinstance(found, list | dict):
        raise NotUnderstood(f"expected images, got {found!r:.80}")
    return found


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"not KEY=VALUE: {text}")
    return key, value


def _size(one: dict[str, Any]) -> str:
    return f"{one['size_bytes'] / (1 << 20):.0f} MiB" if one["kind"] == "environment" else ""
