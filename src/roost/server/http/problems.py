"""Errors as problem documents (spec/errors.md)."""

import re
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from roost.wire.errors import RoostError

BASE = "https://api.backend.ai/probs/"

STATUSES: Mapping[str, int] = {
    "general-error": 500,
    "invalid-api-params": 400,
    "auth-failed": 401,
    "invalid-auth-params": 400,
    "generic-bad-request": 400,
    "generic-forbidden": 403,
    "insufficient-privilege": 403,
    "generic-not-found": 404,
    "session-not-found": 404,
    "too-many-sessions-matched": 404,
    "image-not-found": 404,
    "run-not-found": 404,
    # Not 404: official command lines take that for a missing session.
    "file-not-found": 400,
    "scaling-group-not-found": 404,
    "vfolder-not-found": 404,
    "task-template-not-found": 404,
    "method-not-allowed": 405,
    "conflict": 409,
    "session-already-exists": 400,
    "run-already-exists": 409,
    "session-not-running": 409,
    "quota-exceeded": 412,
    "rate-limit-exceeded": 429,
    "too-many-requests": 429,
    "instance-not-available": 503,
    "cannot-enforce": 400,
    "agent-failure": 500,
    "sandbox-lost": 500,
    "keeper-gone": 500,
    "server-misconfigured": 500,
    "internal-server-error": 500,
}
"""The status of each slug."""

_OF_AGENTS = {"agent-failure", "sandbox-lost", "keeper-gone"}
_ALWAYS_WITH_DATA: dict[str, Any] = {"too-many-sessions-matched": {"matches": []}, "session-already-exists": {}}
"""Official command lines read `data` of these without looking whether it is there (spec/errors.md §2)."""


def problem_of(error: RoostError, *, doing: str = "kernel-execution-failed") -> web.Response:
    """The answer that an error of ours becomes.

    Args:
        doing: the slug for failures of the node, which names what it was doing.
    """
    if error.code in _OF_AGENTS:
        details = {"type": f"{BASE}agent-failure", "title": error.title(), "exception": error.message}
        return problem(doing, error.title(), msg=error.message, hint=error.hint, extra={"agent-details": details})
    data = error.data if error.data is not None else _ALWAYS_WITH_DATA.get(error.code)
    return problem(error.code, error.title(), msg=error.message, hint=error.hint, data=data)


def problem(
    slug: str,
    title: str,
    *,
    msg: str | None = None,
    hint: str | None = None,
    data: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> web.Response:
    """A problem document; `hint`, which is ours, says what to do next."""
    body: dict[str, Any] = {"type": BASE + slug, "title": title}
    msg = printable(msg) if msg is not None else None
    body |= {key: value for key, value in (("msg", msg), ("hint", hint), ("data", data)) if value is not None}
    return web.Response(
        status=STATUSES.get(slug, 500),
        body=orjson.dumps(body | dict(extra or {})),
        content_type="application/problem+json",
    )


def printable(text: str) -> str:
    """A text that JSON can hold: names of files have bytes that are no UTF-8, which become `�`."""
    return _NO_UTF8.sub("\N{REPLACEMENT CHARACTER}", text)


_NO_UTF8 = re.compile("[\ud800-\udfff]")
