"""Sessions: `create`, `destroy`, `restart`, `rename`, `logs`, `ps`, `why`."""

import asyncio
import datetime
from collections.abc import Callable
from typing import Any

import click

from roost.cli.connection import connected
from roost.cli.options import creation_arguments, name_option, owner_option, placement_options, resource_options
from roost.cli.output import (
    EXPECTED,
    fail,
    failure_of,
    is_compatible,
    note,
    print_failure,
    print_items,
    say,
    wants_json,
)
from roost.cli.pretty import print_fail, print_warn
from roost.cli.stats import print_stats
from roost.cli.waiting import telling_why
from roost.client.api import Answer, Api, find_target, session_path
from roost.client.errors import NotUnderstood
from roost.client.exceptions import BackendAPIError
from roost.client.func.session import new_name
from roost.wire.errors import SessionNotFound

NOT_MADE = ("ERROR", "CANCELLED")
"""Statuses in which a creation has failed."""


@click.command()
@click.argument("image")
@name_option
@owner_option
@click.option("-c", "--startup-command", help="What a batch session runs.")
@placement_options
@resource_options
@click.pass_context
def create(ctx: click.Context, /, image: str, name: str | None, startup_command: str | None, **options: Any) -> None:
    """Create a session of IMAGE, or find the one of that name, without running code.

    Its name is written to stdout.
    """
    name = name if name is not None else new_name()
    arguments = creation_arguments(options)
    with connected() as api, telling_why(name, options["owner"]):
        made = api.ComputeSession.get_or_create(image, name=name, startup_command=startup_command, **arguments)
    show_created(ctx, made)


def show_created(ctx: click.Context, made: Any) -> None:
    """Tell what a creation came to; exit with 1 where it failed."""
    if wants_json():
        keys = ("name", "status", "created", "service_ports")
        print_items([{"session_id": made.id, **{key: getattr(made, key) for key in keys}}], {})
    else:
        _tell_created(made)
    if made.status in NOT_MADE:
        ctx.exit(1)


def _tell_created(made: Any) -> None:
    about = f"session {made.name} ({made.id})"
    match made.status:
        case "PENDING":
            say(f"{about} is enqueued")
        case "SCHEDULED":
            say(f"{about} is scheduled and about to start")
        case "RUNNING":
            say(f"{about} is created and ready" if made.created else f"{about} is already running")
            if services := [str(port["name"]) for port in made.service_ports]:
                say(f"it has the services {', '.join(services)}")
        case "TIMEOUT":
            say(f"{about} is still waiting to start")
        case "TERMINATED":
            print_warn(f"{about} has ended already; its image may have a problem")
        case _:
            print_fail(f"{about} could not be started: {made.status}")
    if not is_compatible():
        if made.status not in ("RUNNING", "PENDING", "SCHEDULED"):
            note(f"hint: `roost why {made.name}` tells what happened to it")
        click.echo(made.name)


@click.command()
@click.argument("names", nargs=-1, metavar="SESSION...")
@click.option("-f", "--forced", is_flag=True, help="End it whatever state it is in.")
@click.option("-r", "--recursive", is_flag=True, help="End those that depend on it too.")
@click.option("-s", "--stats", is_flag=True, help="Show what it used.")
@owner_option
@click.pass_context
def destroy(
    ctx: click.Context, names: tuple[str, ...], forced: bool, recursive: bool, stats: bool, owner: str | None
) -> None:
    """End sessions. All are tried; one that fails makes the exit code 1."""

    def end(session: Any) -> Any:
        ended = session.destroy(forced=forced, recursive=recursive)
        found: list[dict[str, Any]] = [one["stats"] for one in (ended if isinstance(ended, list) else [ended]) if one]
        if stats and not wants_json():
            for one in found:
                print_stats(one)
        return {"stats": found[0] if found else None}

    _for_each(ctx, names, owner, end, "ended {}")


@click.command()
@click.argument("names", nargs=-1, metavar="SESSION...")
@owner_option
@click.pass_context
def restart(ctx: click.Context, names: tuple[str, ...], owner: str | None) -> None:
    """Restart sessions: variables and processes are gone, files are kept."""
    _for_each(ctx, names, owner, lambda session: session.restart(), "restarted {}")


def _for_each(
    ctx: click.Context, names: tuple[str, ...], owner: str | None, do: Callable[[Any], Any], done: str
) -> None:
    """Do something to each session; exit with 1 where it failed for any."""
    if not names:
        raise fail("no session is named", hint="name at least one; `roost ps` lists them")
    items, failed = [], False
    with connected() as api:
        for name in names:
            try:
                more = do(api.ComputeSession(name, owner))
            except EXPECTED as error:
                failed = True
                if wants_json() and len(names) > 1:  # one document for all of them
                    items.append({"name": name, "error": failure_of(error)})
                    continue
                print_failure(error, about=name if len(names) > 1 else "")
                is_missing = isinstance(error, BackendAPIError) and error.status == 404
                if is_missing and owner is None and is_compatible() and not wants_json():
                    note("  if it is somebody else's, name the owner's access key with -o")
            else:
                items.append({"name": name, **(more or {})})
                if not wants_json():
                    say(done.format(name))
    if wants_json() and items:
        print_items(items, {})
    if failed:
        ctx.exit(1)


@click.command()
@click.argument("session")
@click.argument("new_name")
def rename(session: str, new_name: str) -> None:
    """Give SESSION another name."""
    with connected() as api:
        api.ComputeSession(session).rename(new_name)
    if wants_json():
        print_items([{"name": new_name}], {})
    else:
        say(f"{session} is now {new_name}")


@click.command()
@click.argument("session")
@owner_option
def logs(session: str, owner: str | None) -> None:
    """Print what the programs of SESSION have written."""
    with connected() as api:
        text = api.ComputeSession(session, owner).get_logs()["result"]["logs"]
    if wants_json():
        print_items([{"name": session, "logs": text}], {})
    else:
        click.echo(text, nl=False)


@click.command()
@click.option("-a", "--all", "show_all", is_flag=True, help="Ended ones too.")
def ps(show_all: bool) -> None:
    """List sessions, with the reason of each one's state."""
    found = _items(_call("GET", "/session", {"status": "all"} if show_all else None))
    if not found and not wants_json():
        note("no sessions")
    rows = found if wants_json() else [{**item, "reason": _reason(item)} for item in found]
    print_items(rows, {"name": "name", "status": "status", "image": "image", "reason": "reason"})


@click.command()
@click.argument("reference", metavar="SESSION|RUN")
@click.option("-t", "--session", help="The session of the run, where RUN is one; else all of yours are searched.")
def why(reference: str, session: str | None) -> None:
    """Tell what happened to a session, when, and why; or how a run ended, and what it cost."""
    if session is not None:
        _tell_run(session, reference)
        return
    try:
        happened = _items(_call("GET", session_path(reference, "history")))
    except SessionNotFound:
        for item in _items(_call("GET", "/session", {"status": "all"})):
            if any(run.get("run_id") == reference for run in _items(_call("GET", session_path(item["id"], "runs")))):
                _tell_run(str(item["id"]), reference)
                return
        raise
    if wants_json():
        print_items(happened, {})
        return
    for item in happened:
        click.echo(f"{_text(item, 'at')}  {_text(item, 'sentence') or _text(item, 'code')}")
        if item.get("hint"):
            click.echo(f"    hint: {item['hint']}")


def _tell_run(session: str, run_id: str) -> None:
    run = _call("GET", session_path(session, "runs", run_id))
    if not isinstance(run, dict):
        raise NotUnderstood(f"expected a run, got {run!r:.80}")
    if wants_json():
        print_items([run], {})
        return
    for line in run_story(run):
        click.echo(line)


def run_story(run: dict[str, Any]) -> list[str]:
    """What a run came to: its times, its end and its cost, a line each."""
    told = [("accepted_at", "accepted"), ("started_at", "started"), ("ended_at", "ended")]
    story = [f"{_time(run[key])}  {word}" for key, word in told if run.get(key) is not None]
    end = f"{_text(run, 'state')}"
    if run.get("status") is not None:
        end = f"{run['status']}, exit code {run.get('exit_code')}"
    story.append(end)
    reason, cost = run.get("reason"), run.get("cost")
    if isinstance(reason, dict):
        story.append(_text(reason, "sentence"))
        if reason.get("hint"):
            story.append(f"    hint: {reason['hint']}")
    if isinstance(cost, dict):
        parts = [f"{cost.get('cpu_s', 0):.3f} s of CPU", f"{cost.get('wall_s', 0):.3f} s in all"]
        parts.append(f"{cost.get('peak_bytes', 0)} bytes of memory at most")
        for key, word in (("read_bytes", "read"), ("written_bytes", "written")):
            if cost.get(key) is not None:
                parts.append(f"{cost[key]} bytes {word}")
        story.append("cost: " + ", ".join(parts))
    return story


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


def _time(value: Any) -> str:
    """A time as people read it; the server may send a number of seconds or a text."""
    if isinstance(value, int | float):
        return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat(sep=" ", timespec="milliseconds")
    return str(value)


def _reason(item: dict[str, Any]) -> str:
    reason = item.get("reason")
    return _text(reason, "sentence") if isinstance(reason, dict) else _text(item, "status_info")
