"""Options that several commands have (spec/cli.md §2), and how their values are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class KeyValue(click.ParamType):  # type: ignore[type-arg] # older releases of click know no argument
    """`KEY=VALUE`."""

    name = "KEY=VAL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not KEY=VAL", param, ctx)
        return key, text


class Mount(click.ParamType):  # type: ignore[type-arg] # older releases of click know no argument
    """`NAME`, `NAME=PATH` or `NAME:PATH`; the first sign that is there counts, `=` before `:`."""

    name = "NAME[=PATH]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str | None]:
        if isinstance(value, tuple):
            return value
        text = str(value)
        name, sign, path = text.partition("=" if "=" in text else ":")
        if not name or (sign and not path):
            self.fail(f"{value!r} is not NAME, NAME=PATH or NAME:PATH", param, ctx)
        return name, path or None


class Commas(click.ParamType):  # type: ignore[type-arg] # older releases of click know no argument
    """Values between commas."""

    name = "A,B,…"

    def __init__(self, read: Callable[[str], Any] = str) -> None:
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        try:
            return [self._read(part.strip()) for part in str(value).split(",") if part.strip()]
        except ValueError:
            self.fail(f"{value!r} is not a list of such values", param, ctx)


def name_option(command: F) -> F:
    """Which session."""
    return click.option("-t", "--name", "--client-token", "name", metavar="NAME", help="The session's name.")(command)


def owner_option(command: F) -> F:
    """For whom an administrator acts."""
    return click.option(
        "-o", "--owner", "--owner-access-key", "owner", metavar="KEY", help="Act for the owner of this access key."
    )(command)


def resource_options(command: F) -> F:
    """What programs find in the session, and what they may use."""
    return _all(
        command,
        click.option("-e", "--env", "envs", type=KeyValue(), multiple=True, help="Environment variable; repeatable."),
        click.option("-r", "--resources", type=KeyValue(), multiple=True, help="Such as cpu=2 or mem=1g; repeatable."),
        click.option("--resource-opts", type=KeyValue(), multiple=True, help="Such as shmem=64m; repeatable."),
        click.option(
            "--bootstrap-script",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A script to run before the session is usable.",
        ),
        click.option("--tag", help="A note of yours."),
    )


def starting_options(command: F) -> F:
    """Where the session runs, when, and with which folders."""
    return _all(
        command,
        click.option("--type", "type_", type=click.Choice(["batch", "interactive"]), default="interactive"),
        click.option(
            "--starts-at",
            "--starts_at",
            help="Earliest start of a batch session: ISO 8601, or a time from now (1h30m).",
        ),
        click.option("--enqueue-only", is_flag=True, help="Do not wait until it runs."),
        click.option("--max-wait", type=click.IntRange(min=0), default=0, help="Seconds to wait for it; 0: no limit."),
        click.option("--no-reuse", is_flag=True, help="Fail where a session of this name lives."),
        click.option("-v", "--volume", "-m", "--mount", "mounts", type=Mount(), multiple=True, help="A folder."),
        click.option("--scaling-group", "--sgroup", help="The group of nodes to run on."),
        click.option("--cluster-size", type=click.IntRange(min=1), default=1),
        click.option("--cluster-mode", type=click.Choice(["single-node", "multi-node"]), default="single-node"),
        click.option("-d", "--domain", help="The domain; that of the configuration, if not given."),
        click.option("-g", "--group", help="The group; that of the configuration, if not given."),
        click.option("--depends", type=Commas(), help="Sessions that have to succeed first, between commas."),
        click.option("--callback-url", help="Hears of the session's life."),
    )


def placement_options(command: F) -> F:
    """The same, and what only a session that is not of a template has."""
    return _all(
        starting_options(command),
        click.option("--preopen", type=Commas(int), help="Ports, between commas."),
        click.option("--assign-agent", type=Commas(), help="Nodes, between commas; for administrators."),
    )


def creation_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `ComputeSession.get_or_create` that the options of the functions above stand for."""
    mounts = options.get("mounts", ())
    script = options.get("bootstrap_script")
    same = ("starts_at", "enqueue_only", "max_wait", "no_reuse", "tag", "scaling_group", "cluster_size", "cluster_mode")
    renamed = {
        "type_": options.get("type_", "interactive"),
        "envs": dict(options.get("envs", ())),
        "resources": dict(options.get("resources", ())),
        "resource_opts": dict(options.get("resource_opts", ())),
        "mounts": [name for name, _ in mounts],
        "mount_map": {name: path for name, path in mounts if path is not None},
        "bootstrap_script": script.read_text() if script is not None else None,
        "preopen_ports": options.get("preopen"),
        "domain_name": options.get("domain"),
        "group_name": options.get("group"),
        "owner_access_key": options.get("owner"),
        "assign_agent": options.get("assign_agent"),
        "dependencies": options.get("depends"),
        "callback_url": options.get("callback_url"),
    }
    return {key: options[key] for key in same if key in options} | renamed


def skipped(command: str | None) -> str | None:
    """The command of a stage; `-` and an empty one skip it."""
    return None if command in (None, "", "-") else command


def _all(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
