"""A session as all layers speak of it."""

from enum import StrEnum


class SessionType(StrEnum):
    """What a session is for."""

    INTERACTIVE = "interactive"
    """runs what it is sent until it is ended"""
    BATCH = "batch"
    """runs one command, then ends by itself"""


class SessionResult(StrEnum):
    """What a batch session came to (spec/sessions-lifecycle.md §4)."""

    UNDEFINED = "UNDEFINED"
    """not known yet; always so for interactive sessions"""
    SUCCESS = "SUCCESS"
    """its command ended with exit code 0"""
    FAILURE = "FAILURE"


class SessionState(StrEnum):
    """The states of a session; names and meaning follow spec/sessions-lifecycle.md §1."""

    PENDING = "PENDING"
    """queued"""
    SCHEDULED = "SCHEDULED"
    """a node is chosen and its resources are reserved"""
    PREPARING = "PREPARING"
    """the agent is launching the sandbox"""
    RUNNING = "RUNNING"
    """usable"""
    RESTARTING = "RESTARTING"
    """its sandbox is ended and launched anew in the same home"""
    TERMINATING = "TERMINATING"
    """being destroyed"""
    TERMINATED = "TERMINATED"
    """gone"""
    ERROR = "ERROR"
    """destroying or restarting failed; needs forced termination"""
    CANCELLED = "CANCELLED"
    """never ran"""

    @property
    def is_live(self) -> bool:
        """Whether a session in this state is found by reference and holds its name."""
        return self not in (SessionState.TERMINATED, SessionState.CANCELLED)
