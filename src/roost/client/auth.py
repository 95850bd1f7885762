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
    key = _host_key(secret_key, f"{date.year:04}{date.month:02}{date.day:02}", host, hash_type)
    signature = _hmac(key, text, hash_type).hex()
    credential = f"signMethod=HMAC-{hash_type.upper()}, credential={access_key}:{signature}"
    return {"Authorization": f"BackendAI {credential}"}, signature


@functools.lru_cache(maxsize=16)
def _host_key(secret_key: str, day: str, host: str, hash_type: str) -> bytes:
    return _hmac(_hmac(secret_key.encode(), day, hash_type), host, hash_type)


@functools.lru_cache(maxsize=16)
def _digest_of_nothing(hash_type: str) -> str:
    return hashlib.new(hash_type, usedforsecurity=False).hexdigest()


def _hmac(key: bytes, text: str, hash_type: str) -> bytes:
    return hmac.digest(key, text.encode(), hash_type)
