"""The command `roost`."""

import click

from roost.cli.images import image
from roost.cli.output import Group
from roost.cli.run import run
from roost.cli.server import doctor, down, serve, status, up
from roost.cli.sessions import ps, rm, why
from roost.client import __version__


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Run code in isolated, long-lived sessions."""


for command in (run, up, down, status, serve, doctor, ps, why, rm, image):
    main.add_command(command)
