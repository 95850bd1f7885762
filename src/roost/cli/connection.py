"""The connection of a command."""

import contextlib
from collections.abc import Iterator

from roost.cli.output import is_compatible
from roost.cli.pretty import print_info
from roost.client.api import configured_target, find_target
from roost.client.config import APIConfig, get_config, set_config
from roost.client.session import Session


@contextlib.contextmanager
def connected() -> Iterator[Session]:
    """A session with the configured server, else with this machine's; `roost` starts that if it does not run."""
    if configured_target() is not None:
        skip = get_config().skip_sslcert_validation
        set_config(APIConfig(announcement_handler=print_info, skip_sslcert_validation=skip))
    elif not is_compatible():
        find_target()
    with Session(config=get_config()) as api:
        yield api
