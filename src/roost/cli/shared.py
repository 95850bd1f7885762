"""The commands on sessions that `roost` and `backend.ai` share, with all their names (spec/cli.md §1)."""

import click

from roost.cli.files import download, ls, upload
from roost.cli.sessions import create, destroy, logs, rename, restart
from roost.cli.templates import create_from_template, session_template


@click.group()
def session() -> None:
    """Commands on sessions."""


def add_shared_commands(main: click.Group) -> None:
    """Give a command those that both have, at its top and below `session`."""
    for group in (main, session):
        for command in (create, restart, create_from_template):
            group.add_command(command)
        for alias in ("destroy", "rm", "kill"):
            group.add_command(destroy, alias)
    for command in (rename, logs, upload, download, ls):
        session.add_command(command)
    main.add_command(session)
    main.add_command(create, "start")
    main.add_command(create_from_template, "start-from-template")
    for alias in ("session-template", "sesstpl"):
        main.add_command(session_template, alias)
