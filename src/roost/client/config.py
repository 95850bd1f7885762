"""Where the server is and who we are (spec/client-sdk.md §2 and §14.2)."""

import enum
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from yarl import URL

from roost.client import get_user_agent
from roost.client.local import read_local_server
from roost.wire.versions import CLIENT_VERSION
from roost.wire.versions import parse_version as parse_api_version

__all__ = (
    "API_VERSION",
    "DEFAULT_CHUNK_SIZE",
    "MAX_INFLIGHT_CHUNKS",
    "MIN_API_VERSION",
    "APIConfig",
    "bool_env",
    "get_config",
    "get_env",
    "local_cache_path",
    "local_state_path",
    "parse_api_version",
    "set_config",
)

T = TypeVar("T")

API_VERSION = parse_api_version(CLIENT_VERSION)
MIN_API_VERSION = (5, "20191215")
DEFAULT_CHUNK_SIZE = 16 * 1024 * 1024
MAX_INFLIGHT_CHUNKS = 4


class _Undefined(enum.Enum):
    token = 0


def bool_env(text: str) -> bool:
    """Read a switch as people write it.

    Raises:
        ValueError: the text is no switch.
    """
    lowered = text.lower()
    if lowered in {"y", "yes", "t", "true", "1"}:
        return True
    if lowered in {"n", "no", "f", "false", "0"}:
        return False
    raise ValueError(f"not a yes or no: {text!r}")


def get_env(key: str, default: Any = _Undefined.token, *, clean: Callable[[str], Any] = str) -> Any:
    """The value of `BACKEND_<key>`, else of `SORNA_<key>`, else the default.

    Raises:
        KeyError: neither is set and no default was given.
    """
    for name in (f"BACKEND_{key.upper()}", f"SORNA_{key.upper()}"):
        if name in os.environ:
            return clean(os.environ[name])
    if default is _Undefined.token:
        raise KeyError(key)
    return clean(default) if isinstance(default, str) else default


class APIConfig:
    """Everything that a connection needs to know; arguments weigh more than the environment."""

    DEFAULTS = {  # noqa: RUF012 (a plain dictionary in the original; programs read it)
        "endpoint": "https://api.backend.ai",
        "endpoint_type": "api",
        "version": CLIENT_VERSION,
        "hash_type": "sha256",
        "domain": "default",
        "group": "default",
        "vfolder_mounts": "",
        "skip_sslcert_validation": "no",
        "connection_timeout": "10.0",
        "read_timeout": "0",
    }

    def __init__(
        self,
        *,
        endpoint: URL | str | None = None,
        endpoint_type: str | None = None,
        domain: str | None = None,
        group: str | None = None,
        version: str | None = None,
        user_agent: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        hash_type: str | None = None,
        vfolder_mounts: Iterable[str] | None = None,
        skip_sslcert_validation: bool | None = None,
        connection_timeout: float | None = None,
        read_timeout: float | None = None,
        announcement_handler: Callable[[str], None] | None = None,
    ) -> None:
        self._endpoints = _endpoints(str(self._given("endpoint", endpoint)))
        self._endpoint_type = self._given("endpoint_type", endpoint_type)
        self._domain = self._given("domain", domain)
        self._group = self._given("group", group)
        self._version = version if version is not None else self.DEFAULTS["version"]
        self._user_agent = user_agent if user_agent is not None else get_user_agent()
        if self._endpoint_type == "api":
            self._access_key = access_key if access_key is not None else get_env("ACCESS_KEY", "")
            self._secret_key = secret_key if secret_key is not None else get_env("SECRET_KEY", "")
        else:  # a web server in front knows who we are, by cookie
            self._access_key = self._secret_key = "dummy"  # noqa: S105
        self._hash_type = (hash_type if hash_type is not None else self.DEFAULTS["hash_type"]).lower()
        self._vfolder_mounts = list({*(vfolder_mounts or ()), *get_env("VFOLDER_MOUNTS", "", clean=_comma_list)})
        self._skip_sslcert_validation = self._given("skip_sslcert_validation", skip_sslcert_validation, bool_env)
        self._connection_timeout = self._given("connection_timeout", connection_timeout, float)
        self._read_timeout = self._given("read_timeout", read_timeout, float)
        self._announcement_handler = announcement_handler

    def _given(self, name: str, argument: T | None, clean: Callable[[str], Any] = str) -> Any:
        return argument if argument is not None else get_env(name.upper(), self.DEFAULTS[name], clean=clean)

    @property
    def is_anonymous(self) -> bool:
        """Whether requests go out unsigned."""
        return self._access_key == ""

    @property
    def endpoint(self) -> URL:
        """The endpoint that requests go to now."""
        return self._endpoints[0]

    @property
    def endpoints(self) -> list[URL]:
        return self._endpoints

    def rotate_endpoints(self) -> None:
        """Go on with the next endpoint; the first becomes the last."""
        self._endpoints = [*self._endpoints[1:], self._endpoints[0]]

    def load_balance_endpoints(self) -> None:
        """Called after each request; does nothing."""

    @property
    def endpoint_type(self) -> str:
        return cast(str, self._endpoint_type)

    @property
    def domain(self) -> str:
        return cast(str, self._domain)

    @property
    def group(self) -> str:
        return cast(str, self._group)

    @property
    def user_agent(self) -> str:
        return self._user_agent

    @property
    def access_key(self) -> str:
        return cast(str, self._access_key)

    @property
    def secret_key(self) -> str:
        return cast(str, self._secret_key)

    @property
    def version(self) -> str:
        """The highest version to ask for; checked when a session opens."""
        return self._version

    @property
    def hash_type(self) -> str:
        return self._hash_type

    @property
    def vfolder_mounts(self) -> list[str]:
        return self._vfolder_mounts

    @property
    def skip_sslcert_validation(self) -> bool:
        return cast(bool, self._skip_sslcert_validation)

    @property
    def connection_timeout(self) -> float:
        """Seconds; 0 is none."""
        return cast(float, self._connection_timeout)

    @property
    def read_timeout(self) -> float:
        """Seconds; 0 is none."""
        return cast(float, self._read_timeout)

    @property
    def announcement_handler(self) -> Callable[[str], None] | None:
        return self._announcement_handler


def _endpoints(text: str) -> list[URL]:
    endpoints = [URL(part) for part in _comma_list(text)]
    for endpoint in endpoints:
        if not endpoint.absolute:
            raise ValueError(f"the endpoint must be an absolute URL, not {str(endpoint)!r}")
    if not endpoints:
        raise ValueError("there must be an endpoint")
    random.shuffle(endpoints)
    return endpoints


def _comma_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


_config: APIConfig | None = None


def get_config() -> APIConfig:
    """The configuration of this process; made at first use.

    It is read from the environment. Where that names neither endpoint nor key, a local server that runs now is used.
    """
    global _config
    if _config is None:
        _config = _from_local_server() or APIConfig()
    return _config


def set_config(conf: APIConfig | None) -> None:
    """Replace the configuration of this process; None has the next `get_config` read the environment again."""
    global _config
    _config = conf


def _from_local_server() -> APIConfig | None:
    if any(get_env(key, None) is not None for key in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY")):
        return None
    server = read_local_server()
    if server is None:
        return None
    return APIConfig(endpoint=server.endpoint, access_key=server.access_key, secret_key=server.secret_key)


def _user_path(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "backend.ai"


local_state_path = _user_path("XDG_STATE_HOME", ".local/state")
local_cache_path = _user_path("XDG_CACHE_HOME", ".cache")
