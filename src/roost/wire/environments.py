"""Environments: folders of packages that images bring along."""

import msgspec

from roost.wire.sandboxes import Interpreter


class EnvironmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment is to be made of."""

    interpreter: Interpreter
    """A Python of the node."""
    requirements: str
    """One to a line, without options."""
    lock: str | None = None
    """What these were solved to before, with the hash of each file; None lets the node solve them."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment is made of, and what it is called by that."""

    digest: str
    """64 hexadecimal digits over all that it is made of."""
    lock: str
    size_bytes: int
    """Of its files; what they share with other environments is counted in each."""
