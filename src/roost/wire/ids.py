"""How things are named."""

import re
import secrets
import uuid

SESSION_NAME = re.compile(r"(?=.{4,64}\Z)\w[\w.-]*\w", re.ASCII)
"""A session's name, 4 to 64 characters (spec/rest-sessions.md §4.1); match it with `fullmatch`."""

SESSION_REFERENCE = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
"""What may refer to a session: an id, a name, or the beginning of one; match it with `fullmatch`."""

RUN_ID = re.compile(r"(?!\.{1,2}\Z)[\w.:-]{1,64}", re.ASCII)
"""A run id that a client chose; match it with `fullmatch`. Dots alone would be lost from a path."""


def new_session_id() -> str:
    """A session's id: a UUID in canonical lower-case form."""
    return str(uuid.uuid4())


def new_run_id() -> str:
    """A run id where the client left it to us: 32 hexadecimal digits (spec/execution.md §1)."""
    return secrets.token_hex(16)
