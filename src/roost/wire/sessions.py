"""A session as all layers speak of it."""

from enum import StrEnum


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
