"""`roost up`, `down`, `status`, `doctor`: the server of this machine."""

import importlib.util
import os
import subprocess
import sys

import click

from roost.cli.output import fail, note, print_items, wants_json
from roost.client.local import (
    LocalServer,
    ServerNotStarted,
    default_data_dir,
    ensure_local_server,
    read_local_server,
    stop_local_server,
)


@click.command()
def up() -> None:
    """Start this machine's server, if it does not run."""
    before = read_local_server()
    server = before or ensure_local_server()
    if before is not None:
        note(f"already running (pid {server.pid})")
    if wants_json():
        print_items([_item(server)], {})
    else:
        click.echo(server.endpoint)


@click.command()
def down() -> None:
    """Stop this machine's server; its sessions go on."""
    note("stopped" if stop_local_server() else "no server was running")


@click.command()
def status() -> None:
    """Tell whether this machine's server runs, and where."""
    server = read_local_server()
    if server is None:
        raise fail(f"no server runs on {default_data_dir()}", hint="start one with `roost up`")
    if wants_json():
        print_items([_item(server)], {})
        return
    click.echo(f"running on {server.endpoint} (pid {server.pid}, data in {default_data_dir()})")


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Serve in the foreground until SIGTERM or SIGINT; `--help` lists the options."""
    _require_server()
    os.execv(sys.executable, [sys.executable, "-m", "roost.server", *options])  # noqa: S606 - ours, without a shell


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def doctor(ctx: click.Context, options: tuple[str, ...]) -> None:
    """Tell which isolation this host can give, and what would mend the rest."""
    _require_server()
    ctx.exit(subprocess.run([sys.executable, "-m", "roost.agent", "doctor", *options], check=False).returncode)


def _item(server: LocalServer) -> dict[str, object]:
    return {"endpoint": server.endpoint, "pid": server.pid, "data_dir": str(default_data_dir())}


def _require_server() -> None:
    if importlib.util.find_spec("psutil") is None:
        raise ServerNotStarted("the server's part of roost is not installed here", hint="pip install 'roost[server]'")
