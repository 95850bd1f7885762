"""The seam that says who is calling."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import msgspec


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling."""

    access_key: str
    user_id: str
    email: str
    role: str
    """`superadmin`, `admin` (of a domain), `user`."""
    domain: str


class Presented(msgspec.Struct, frozen=True, kw_only=True):
    """What a request shows of its sender."""

    method: str
    target: str
    """Path and query exactly as sent."""
    headers: Mapping[str, str]
    """Looked up without regard to case."""
    scheme: str
    version: str


class Authenticator(ABC):
    """One way to say who one is."""

    @abstractmethod
    async def authenticate(self, request: Presented) -> Caller | None:
        """Who sent this request; None where it carries nothing of this kind.

        Raises:
            InvalidAuthParameters: what it carries is malformed, or outside of its time window.
            NotAuthenticated: what it carries is wrong.
        """
