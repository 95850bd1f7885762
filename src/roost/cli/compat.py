"""The command `backend.ai`, as far as it exists: `config`."""

import click

from roost.client import __version__
from roost.client.config import get_config, set_config


@click.group(name="backend.ai", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """The command of Backend.AI's client, on roost."""
    set_config(None)


@main.command()
def config() -> None:
    """Show the configuration; asks no server."""
    current = get_config()
    secret = f"{current.secret_key[:4]}…" if current.secret_key else "(none)"
    rows = {
        "API endpoint": ", ".join(str(endpoint) for endpoint in current.endpoints),
        "Endpoint type": current.endpoint_type,
        "API version": current.version,
        "Domain": current.domain,
        "Group": current.group,
        "Access key": current.access_key or "(none)",
        "Secret key": secret,
        "Signature hash": current.hash_type,
        "Skip SSL certificate validation": "yes" if current.skip_sslcert_validation else "no",
    }
    for label, value in rows.items():
        click.echo(f"{label}: {value}")
