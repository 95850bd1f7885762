"""What the operator may set: `roost.toml`, environment, flags, in that order of rising weight."""

import ipaddress
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.wire.errors import InvalidParameters

LEAST_CAP_BYTES = 1 << 20
"""A run log needs room for what its readers are reading now."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings, checked."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    data_dir: Path
    engine: str = "local"
    overcommit_cpu: float = 1000.0
    overcommit_mem: float = 100.0
    log_cap_bytes: int = 1 << 30
    """As long a session's run log may be; above, its oldest events go."""
    log_keep_s: float = 30 * 86400.0
    """How long the logs of sessions that have ended are kept."""
    insecure_http: bool = False
    """Whether plain HTTP may be served beyond loopback: bodies are not signed."""
    webhooks_allow_private: bool | frozenset[str] = False
    """Whether webhooks may be at loopback, link-local and private addresses, or which hosts may."""


def load_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, file: Path | None = None
) -> Settings:
    """Merge all sources; flags that are None were not given.

    Args:
        file: a `roost.toml` that must be there; None takes the one in the data folder, if it has one.

    Raises:
        InvalidParameters: a value cannot be used; the message names it.
    """
    data_dir = Path(flags.get("data_dir") or environ.get("ROOST_DATA_DIR") or default_data_dir(environ))
    merged = _read(file) if file is not None else _read(data_dir / "roost.toml", or_else={})
    merged = _flat(merged)
    merged |= {key: environ[name] for key in _READERS if (name := f"ROOST_{key.upper()}") in environ}
    merged |= {key: value for key, value in flags.items() if value is not None}
    values: dict[str, Any] = {"data_dir": data_dir}
    for key, value in merged.items():
        if key not in _READERS:
            raise InvalidParameters(f"unknown setting {key!r}", hint=f"the settings are {', '.join(_READERS)}")
        try:
            values[key] = _READERS[key](value)
        except (TypeError, ValueError) as error:
            raise InvalidParameters(f"setting {key!r} cannot be {value!r}") from error
    settings = Settings(**values)
    if not settings.insecure_http and not _is_loopback(settings.host):
        raise InvalidParameters(
            f"refusing to serve plain HTTP on {settings.host}", hint="listen on 127.0.0.1, or pass --insecure-http"
        )
    return settings


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where data lies if nobody says: the system's place for root, the user's own otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/roost")
    base = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".local/share"
    return Path(base) / "roost"


def _read(file: Path, or_else: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        if or_else is not None:
            return or_else
        raise InvalidParameters(f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidParameters(f"{file} cannot be read: {error}") from error


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Tables in names: `[webhooks] allow_private` is `webhooks_allow_private`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}_{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    flags = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in flags:
        raise ValueError(value)
    return flags[str(value).lower()]


def _hosts(value: Any) -> bool | frozenset[str]:
    """A flag, or hosts: a list, or a text with commas."""
    if isinstance(value, str | bool):
        try:
            return _flag(value)
        except ValueError:
            value = str(value).split(",")
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise TypeError(value)
    return frozenset(one.strip().lower() for one in value)


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(value)
    return number


def _cap(value: Any) -> int:
    cap = int(value)
    if cap < LEAST_CAP_BYTES:
        raise ValueError(cap)
    return cap


def _port(value: Any) -> int:
    port = int(value)
    if not 0 <= port <= 65535:
        raise ValueError(port)
    return port


_READERS: dict[str, Any] = {
    "host": str,
    "port": _port,
    "data_dir": Path,
    "engine": str,
    "overcommit_cpu": _positive,
    "overcommit_mem": _positive,
    "log_cap_bytes": _cap,
    "log_keep_s": _positive,
    "insecure_http": _flag,
    "webhooks_allow_private": _hosts,
}
