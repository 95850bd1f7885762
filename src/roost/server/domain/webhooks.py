"""Which changes of a session its webhook hears of, what it is told, and where it may be."""

import hashlib
import hmac
import ipaddress
import json

import msgspec
from yarl import URL

from roost.server.domain.times import iso
from roost.wire.errors import InvalidParameters
from roost.wire.sessions import SessionResult, SessionState

MAX_URL = 2048
EVENTS = {
    SessionState.PENDING: "enqueued",
    SessionState.SCHEDULED: "scheduled",
    SessionState.PREPARING: "preparing",
    SessionState.RUNNING: "started",
    SessionState.CANCELLED: "cancelled",
    SessionState.TERMINATED: "terminated",
    SessionResult.SUCCESS: "success",
    SessionResult.FAILURE: "failure",
}
"""What is told of a session that comes into a state, or to a result (spec/rest-sessions.md §4.7)."""

DELAYS_S = (5.0, 30.0, 120.0, 600.0, 3600.0)
"""How long after each failed attempt the next one is made; after the last there is none."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one webhook, until it has arrived or was given up."""

    id: int
    session_id: str
    url: str
    event: str
    body: str
    attempts: int = 0
    """How many have failed."""
    next_at: float
    """When the next is due, Unix time."""


def body_of(session_id: str, event: str, at: float) -> str:
    """The text that is sent and signed."""
    told = {"type": "session_lifecycle", "event": event, "session_id": session_id, "when": iso(at)}
    return json.dumps(told)


def signature_of(secret: bytes, body: bytes) -> str:
    """The value of `X-Roost-Signature`."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def next_attempt(attempts: int, now: float) -> float | None:
    """When to try again after so many attempts have failed; None where that is enough."""
    return now + DELAYS_S[attempts - 1] if attempts <= len(DELAYS_S) else None


def host_of(url: str) -> str:
    """The host that a webhook names, as the HTTP client reads it: other digits and dots may stand for those of ASCII.

    Raises:
        InvalidParameters: it is no URL that can be posted to.
    """
    try:
        parts = URL(url)
        host, _ = parts.raw_host, parts.port
    except ValueError:
        host = None
    if not host or len(url) > MAX_URL or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        raise InvalidParameters(
            f"callback_url cannot be {url!r:.80}", hint=f"an http or https URL of at most {MAX_URL} characters"
        )
    return host


def is_literal(host: str) -> bool:
    """Whether a host is, or could be taken for, an address rather than a name."""
    return ":" in host or host.replace(".", "").isdigit()


def is_public(address: str) -> bool:
    """Whether an address belongs to the internet at large, and leads nowhere else in disguise."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None or ip.is_site_local:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified
