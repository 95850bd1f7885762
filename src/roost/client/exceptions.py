"""What the compatible part of the SDK raises (spec/errors.md §5)."""

from typing import Any

__all__ = (
    "APIVersionWarning",
    "ArgumentError",
    "BackendAPIError",
    "BackendAPIVersionError",
    "BackendClientError",
    "BackendError",
)


class BackendError(Exception):
    """The common base."""

    def __str__(self) -> str:
        return repr(self)


class BackendAPIError(BackendError):
    """The server answered with something other than success."""

    def __init__(self, status: int, reason: str, data: Any) -> None:
        super().__init__(status, reason, data)

    @property
    def status(self) -> int:
        return int(self.args[0])

    @property
    def reason(self) -> str:
        return str(self.args[1])

    @property
    def data(self) -> Any:
        """The parsed body: a problem document, or one made up around text that was none."""
        return self.args[2]


class BackendClientError(BackendError):
    """No endpoint could be reached, or the request makes no sense."""


class HandshakeRefused(BackendAPIError, BackendClientError):
    """The server refused to open a stream; what the original client raises then is a `BackendClientError`."""


class BackendAPIVersionError(BackendError):
    """The negotiated API version lacks this feature."""


class APIVersionWarning(UserWarning):
    """The server and this client prefer different API versions."""


class ArgumentError(ValueError, AssertionError):
    """An argument is wrong; also an `AssertionError`, which programs written for the original client catch."""
