"""The command `roost`."""

import click

from roost.cli.images import image
from roost.cli.output import Group, output_option
from roost.cli.pretty import warn_prettily
from roost.cli.run import run
from roost.cli.server import doctor, down, serve, status, up
from roost.cli.sessions import ps, why
from roost.cli.shared import add_shared_commands
from roost.cli.shell import shell
from roost.client import __version__
from roost.client.config import set_config


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@output_option
def main() -> None:
    """Run code in isolated, long-lived sessions."""
    warn_prettily()
    set_config(None)


add_shared_commands(main)
for command in (run, shell, up, down, status, serve, doctor, ps, why, image):
    main.add_command(command)
