"""The command `backend.ai` (spec/cli.md): those that work on sessions, and `config`."""

import click

from roost.cli.output import Group, output_option, print_items, wants_json
from roost.cli.pretty import warn_prettily
from roost.cli.run import compatible_run
from roost.cli.shared import add_shared_commands
from roost.client import __version__
from roost.client.api import configured_target
from roost.client.config import APIConfig, get_config, set_config
from roost.client.session import Session

_FIRST, _LAST, _LENGTH = 6, 10, 40
"""What `config` shows of a secret key, and how long those are that we and the original make."""


class CompatibleGroup(Group):
    """A group whose errors read as those of the original."""

    is_compatible = True


@click.group(name="backend.ai", cls=CompatibleGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--skip-sslcert-validation", is_flag=True, help="Do not check the server's certificate.")
@output_option
def main(skip_sslcert_validation: bool) -> None:
    """The command of Backend.AI's client, on roost."""
    warn_prettily()
    set_config(None)
    if skip_sslcert_validation and configured_target() is not None:
        set_config(APIConfig(skip_sslcert_validation=True))


@main.command()
def config() -> None:
    """Show the configuration, and which version of the API the server and we agree on."""
    current = get_config()
    with Session() as api:
        theirs, agreed = api.server_version, api.api_version
    rows = {
        "API endpoint": ", ".join(str(endpoint) for endpoint in current.endpoints),
        "Endpoint type": current.endpoint_type,
        "Client's API version": current.version,
        "Server's API version": _version(theirs) if theirs is not None else "(the server does not say)",
        "Negotiated API version": _version(agreed),
        "Domain": current.domain,
        "Group": current.group,
        "Access key": current.access_key or "(none)",
        "Secret key": _masked(current.secret_key) if current.secret_key else "(none)",
        "Signature hash": current.hash_type,
        "Skip SSL certificate validation": "yes" if current.skip_sslcert_validation else "no",
    }
    if wants_json():
        print_items([rows], {})
        return
    for label, value in rows.items():
        click.echo(f"{label}: {value}")


def _version(version: tuple[int, str]) -> str:
    return f"v{version[0]}.{version[1]}"


def _masked(secret: str) -> str:
    """First and last characters as the original shows them (spec/cli.md §13); of one too short for that, nothing."""
    first, last = (secret[:_FIRST], secret[-_LAST:]) if len(secret) >= _LENGTH else ("", "")
    return first + "*" * (_LENGTH - _FIRST - _LAST) + last


add_shared_commands(main)
main.add_command(compatible_run, "run")
