"""Turns problem documents back into the errors they were made of, and adds what only a client can meet."""

import json
from collections.abc import Iterator
from typing import Any

import aiohttp

from roost.client.exceptions import BackendAPIError
from roost.wire.errors import (
    AgentError,
    Conflict,
    Forbidden,
    InvalidParameters,
    LimitExceeded,
    NotAuthenticated,
    NotFound,
    RoostError,
    error_classes,
)

# Types of Backend.AI's servers that are one of ours under another name, and what a bare status means.
_ALSO = {"object-not-found": NotFound, "url-not-found": NotFound, "generic-bad-request": InvalidParameters}
_BY_STATUS: dict[int, type[RoostError]] = {
    400: InvalidParameters,
    401: NotAuthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: LimitExceeded,
    429: LimitExceeded,
}


_GENERIC_ERROR = "https://api.backend.ai/probs/generic-error"


class Unreachable(RoostError):
    """The server cannot be reached."""

    code = "unreachable"
    hint = "is it running? `roost status` tells"


class NotUnderstood(RoostError):
    """The server's answer makes no sense."""

    code = "not-understood"


def problem_to_error(status: int, problem: Any) -> RoostError:
    """The error that a problem document stands for; the status decides where its type is unknown."""
    if not isinstance(problem, dict):
        problem = {}
    inner = problem.get("agent-details")
    codes = {cls.code: cls for cls in error_classes()} | _ALSO
    code = str(problem.get("type", "")).rpartition("/")[2]
    cls = codes.get(code) or (AgentError if inner is not None else _BY_STATUS.get(status, RoostError))
    message = problem.get("msg") or problem.get("detail") or problem.get("title") or f"the server answered {status}"
    hint = problem.get("hint")
    if code == InvalidParameters.code and (faults := ", ".join(_faults(problem.get("data")))):
        message = f"{message} ({faults})"
    return cls(str(message), hint=str(hint) if hint else None, data=problem.get("data"))


def _faults(data: Any, within: str = "") -> Iterator[str]:
    """What is wrong with each parameter, nested ones by their path."""
    for name, fault in data.items() if isinstance(data, dict) else ():
        if isinstance(fault, dict):
            yield from _faults(fault, f"{within}{name}.")
        else:
            yield f"{within}{name}: {fault}"


async def api_error(raw: aiohttp.ClientResponse) -> BackendAPIError:
    """Read an answer that is no success into its error, and give the connection back."""
    try:
        text = await raw.text(errors="replace")
    finally:
        raw.release()
    try:
        data = json.loads(text)
    except ValueError:
        data = {"type": _GENERIC_ERROR, "title": "The server answered with something other than JSON.", "content": text}
    return BackendAPIError(raw.status, raw.reason or "", data)
