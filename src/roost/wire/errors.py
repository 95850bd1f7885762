"""Every error that crosses a border of ours.

    RoostError
    ├── InvalidParameters          the request itself is wrong
    ├── NotAuthenticated           who is calling?
    │   └── InvalidAuthParameters
    ├── Forbidden
    │   └── InsufficientPrivilege
    ├── NotFound
    │   └── SessionNotFound, AmbiguousSession, ImageNotFound, ScalingGroupNotFound, FolderNotFound, TemplateNotFound,
    │       RunNotFound, FileNotFoundInSession
    ├── Conflict
    │   └── SessionAlreadyExists, RunAlreadyExists, SessionNotRunning
    ├── LimitExceeded              a quota or a rate
    │   └── TooManyRuns, TooMuchHeld
    ├── NoCapacity                 no node can take it now
    ├── CannotEnforce              a promise this host cannot keep
    └── AgentError                 the node failed
        └── SandboxLost, KeeperGone

A service raises one of these; `server/http/problems.py` turns its `code` into a problem document, and the
SDK turns that document back into the same class. `code` is the stable last part of a problem's `type`
(spec/errors.md §2).
"""

from collections.abc import Iterator
from typing import Any, ClassVar


class RoostError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "general-error"
    hint: str | None = None

    def __init__(self, message: str | None = None, *, hint: str | None = None, data: Any = None) -> None:
        self.message = message or self.title()
        self.data = data
        if hint is not None:
            self.hint = hint
        super().__init__(self.message)

    @classmethod
    def title(cls) -> str:
        """The sentence for people that every error of this class shares."""
        return (cls.__doc__ or cls.__name__).strip().split("\n")[0].rstrip(".")


class InvalidParameters(RoostError):
    """The request has missing or invalid parameters."""

    code = "invalid-api-params"


class NotAuthenticated(RoostError):
    """The credentials are missing or wrong."""

    code = "auth-failed"


class InvalidAuthParameters(NotAuthenticated):
    """The authentication headers are malformed or outside the time window."""

    code = "invalid-auth-params"


class Forbidden(RoostError):
    """This is not allowed."""

    code = "generic-forbidden"


class InsufficientPrivilege(Forbidden):
    """This needs a higher role."""

    code = "insufficient-privilege"


class NotFound(RoostError):
    """There is no such thing."""

    code = "generic-not-found"


class SessionNotFound(NotFound):
    """There is no such live session."""

    code = "session-not-found"
    hint = "list your sessions with `roost ps`"


class AmbiguousSession(NotFound):
    """Several sessions match this reference."""

    code = "too-many-sessions-matched"
    hint = "use the full name or id"


class ImageNotFound(NotFound):
    """There is no such image."""

    code = "image-not-found"


class ScalingGroupNotFound(NotFound):
    """There is no such scaling group, or it is not the caller's to use."""

    code = "scaling-group-not-found"


class FolderNotFound(NotFound):
    """There are no such folders."""

    code = "vfolder-not-found"


class TemplateNotFound(NotFound):
    """There is no such session template."""

    code = "task-template-not-found"


class RunNotFound(NotFound):
    """There is no such run in this session."""

    code = "run-not-found"


class FileNotFoundInSession(NotFound):
    """There is no such file in this session."""

    code = "file-not-found"


class Conflict(RoostError):
    """This collides with what exists."""

    code = "conflict"


class SessionAlreadyExists(Conflict):
    """A live session of this name exists."""

    code = "session-already-exists"
    hint = "reuse it, or choose another name"


class RunAlreadyExists(Conflict):
    """A run of this id exists with other code."""

    code = "run-already-exists"
    hint = "choose a new run id"


class SessionNotRunning(Conflict):
    """The session is not running."""

    code = "session-not-running"
    hint = "`roost why` tells what happened to it"


class LimitExceeded(RoostError):
    """A limit was reached."""

    code = "quota-exceeded"


class TooManyRuns(LimitExceeded):
    """Too many runs wait in this session."""

    code = "rate-limit-exceeded"


class TooMuchHeld(LimitExceeded):
    """Your other requests hold as much of the server's memory as they may."""

    code = "too-many-requests"
    hint = "let some of them end, read their answers, and send it again"


class NoCapacity(RoostError):
    """No node has room for this now."""

    code = "instance-not-available"


class CannotEnforce(RoostError):
    """This host cannot keep what was asked for."""

    code = "cannot-enforce"
    hint = "`roost doctor` tells what is missing"


class AgentError(RoostError):
    """The node failed to do this."""

    code = "agent-failure"


class SandboxLost(AgentError):
    """The sandbox is gone."""

    code = "sandbox-lost"


class KeeperGone(AgentError):
    """The process that starts this node's sandboxes has died."""

    code = "keeper-gone"
    hint = "the next request starts another one"


def error_classes() -> Iterator[type[RoostError]]:
    """Every class of the tree, the root first."""
    waiting = [RoostError]
    while waiting:
        cls = waiting.pop()
        yield cls
        waiting.extend(cls.__subclasses__())
