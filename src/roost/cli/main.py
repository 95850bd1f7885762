"""The command `roost`."""

import click

from roost.cli.images import image
from roost.cli.output import Group, output_option
from roost.cli.pretty import warn_prettily
from roost.cli.run import run
from roost.cli.server import doctor, down, serve, status, up
from roost.cli.sessions import create, destroy, ps, restart, session, why
from roost.cli.shell import shell
from roost.cli.templates import create_from_template, session_template
from roost.client import __version__
from roost.client.config import set_config


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@output_option
def main() -> None:
    """Run code in isolated, long-lived sessions."""
    warn_prettily()
    set_config(None)


for command in (run, shell, up, down, status, serve, doctor, ps, why, create, restart, session, image):
    main.add_command(command)
main.add_command(create, "start")
for alias in ("create-from-template", "start-from-template"):
    main.add_command(create_from_template, alias)
for alias in ("session-template", "sesstpl"):
    main.add_command(session_template, alias)
for alias in ("destroy", "rm", "kill"):
    main.add_command(destroy, alias)
