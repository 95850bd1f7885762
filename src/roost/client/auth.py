"""Request signatures (spec/auth.md §2)."""

import enum
import functools
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from yarl import URL

__all__ = ("AuthToken", "AuthTokenTypes", "generate_signature")


class AuthTokenTypes(enum.Enum):
    """What kind of token `authorize` asks for."""

    KEYPAIR = "keypair"
    JWT = "jwt"


@dataclass
class AuthToken:
    """The answer of `authorize`."""

    type: str
    content: str | Mapping[str, str]


def generate_signature(
    *,
    method: str,
    version: str,
    endpoint: URL,
    date: datetime,
    rel_url: str,
    content_type: str,
    access_key: str,
    secret_key: str,
    hash_type: str,
) -> tuple[Mapping[str, str], str]:
    """Sign a request; `rel_url` is its target exactly as sent.

    Returns:
        The headers to add, and the signature itself.
    """
    host = endpoint.host_port_subcomponent or ""  # HTTP leaves out default ports, and the server sees what was sent
    text = "\n".join(
        (
            method.upper(),
            rel_url,
            date.isoformat(),
            f"host:{host}",
            f"content-type:{content_type.lower()}",
            f"x-backendai-version:{version}",
            _digest_of_nothing(hash_type),
        )
    )
    signing = _keyed(secret_key, f"{date.year:04}{date.month:02}{date.day:02}", host, hash_type).copy()
    signing.update(text.encode())
    signature = signing.hexdigest()
    credential = f"signMethod=HMAC-{hash_type.upper()}, credential={access_key}:{signature}"
    return {"Authorization": f"BackendAI {credential}"}, signature


@functools.lru_cache(maxsize=16)
def _keyed(secret_key: str, day: str, host: str, hash_type: str) -> hmac.HMAC:
    """The key for one day and host, ready to sign: OpenSSL takes longer to find an algorithm than to use it."""
    key = secret_key.encode()
    for part in (day, host):
        key = hmac.digest(key, part.encode(), hash_type)
    return hmac.new(key, digestmod=hash_type)


@functools.lru_cache(maxsize=16)
def _digest_of_nothing(hash_type: str) -> str:
    return hashlib.new(hash_type, usedforsecurity=False).hexdigest()
