"""The SDK: connections and API classes as in Backend.AI's client, and handles on single sessions (`handle`)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("roost")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"


def get_user_agent() -> str:
    """The `User-Agent` of requests that nobody gave another one."""
    return f"Roost Client for Python {__version__}"


# The modules below ask for the user agent, so it comes first.
from roost.client import exceptions, session  # noqa: E402
from roost.client.exceptions import (  # noqa: E402
    APIVersionWarning,
    BackendAPIError,
    BackendAPIVersionError,
    BackendClientError,
    BackendError,
)
from roost.client.session import AsyncSession, BaseSession, Session, api_session  # noqa: E402

__all__ = (
    "APIVersionWarning",
    "AsyncSession",
    "BackendAPIError",
    "BackendAPIVersionError",
    "BackendClientError",
    "BackendError",
    "BaseSession",
    "Session",
    "__version__",
    "api_session",
    "exceptions",
    "get_user_agent",
    "session",
)
