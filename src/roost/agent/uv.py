"""uv: solving requirements and installing packages, as the operator set up uv, or else pip."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from roost.wire.errors import AgentError, InvalidParameters

COMMAND_TIMEOUT_S = 900.0
LAST_LINES = 20
MAX_LINE = 4096
_PIECE = 1 << 16
_TRUE = ("1", "true", "t", "yes", "y", "on")
_PIP_TIMEOUT_S = 20.0
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_SETTING = re.compile(r"(?:global|install|:env:)\.([a-z-]+)='(.*)'")
_NO_WHEELS = re.compile(r"(?<!\S)(\S+) has no (?:usable )?wheels")
"""uv says so of each package that it would have to build. It begins where a word does: an index may send long ones."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

T = TypeVar("T")

# What pip is told, by what uv calls it; either way of telling it counts.
_BY_PIP = {
    "index-url": ("UV_DEFAULT_INDEX", ("UV_DEFAULT_INDEX", "UV_INDEX_URL")),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", ("UV_INDEX", "UV_EXTRA_INDEX_URL")),
    "find-links": ("UV_FIND_LINKS", ("UV_FIND_LINKS",)),
    "cert": ("SSL_CERT_FILE", ("SSL_CERT_FILE",)),
}


def find_uv() -> str:
    """The program: of our own environment, else of the host.

    Raises:
        AgentError: there is none.
    """
    with contextlib.suppress(ImportError, FileNotFoundError):
        return str(import_module("uv").find_uv_bin())
    found = shutil.which("uv")
    if found is None:
        raise AgentError("uv is not installed", hint="pip install 'roost[server]'")
    return found


class Uv(msgspec.Struct, frozen=True, kw_only=True):
    """How uv is executed."""

    program: str
    environ: dict[str, str]
    options: list[str] = []
    """Of the commands that look for packages."""


async def set_up_uv(cache: Path, environ: Mapping[str, str], python: str) -> Uv:
    """uv in the server's environment, completed by what pip was told.

    Args:
        python: the one whose pip is asked where ours has none.

    Raises:
        AgentError: it is not installed.
    """
    told = _pip_settings(await _ask_pip(sys.executable, environ) or await _ask_pip(python, environ), environ)
    settings = {
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        **({"UV_SYSTEM_CERTS": environ.get("UV_SYSTEM_CERTS", "true")} if _CERTIFICATES.exists() else {}),
    }
    return Uv(
        program=find_uv(),
        environ={**environ, **by_pip(told, environ), **settings, "UV_CACHE_DIR": str(cache)},
        options=["--no-index"] if told.get("no-index", "").lower() in _TRUE else [],
    )


def by_pip(told: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What uv has to be told of pip's settings; what uv was told itself is left alone."""
    return {
        variable: told[name]
        for name, (variable, own) in _BY_PIP.items()
        if told.get(name) and not any(environ.get(one) for one in own)
    }


def _pip_settings(listed: str, environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings by their names there: those of files, under those of variables.

    Args:
        listed: what `pip config list` prints; a later line counts more.
    """
    told = {match[1]: match[2] for line in listed.splitlines() if (match := _SETTING.fullmatch(line.strip()))}
    for name in (*_BY_PIP, "no-index"):
        if value := environ.get("PIP_" + name.replace("-", "_").upper()):
            told[name] = value
    return told


async def _ask_pip(python: str, environ: Mapping[str, str]) -> str:
    """pip's settings; nothing where there is no pip, whose settings then concern nobody."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(python, "-m", "pip", "config", "list"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError:
        return ""
    async with _ending(process):
        try:
            said, _ = await asyncio.wait_for(process.communicate(), _PIP_TIMEOUT_S)
        except TimeoutError:
            return ""
    return said.decode(errors="replace")


async def execute(
    argv: list[str], environ: Mapping[str, str], cwd: Path, doing: str, *, allowed: tuple[int, ...] = (0,)
) -> AsyncGenerator[str, None]:
    """Execute a program of the builder's; gives the lines that it writes, on either stream.

    One that is not waited for to its end is killed, and with it all that it started.

    Args:
        doing: what it does, for messages.
        allowed: the exit codes that are no failure.

    Raises:
        InvalidParameters: it failed; the message has the last lines.
        AgentError: it cannot be executed, or takes too long.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environ),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise AgentError(f"{argv[0]} cannot be executed: {error.strerror}") from error
    async with _ending(process):
        assert process.stdout is not None
        # Not one timeout around all of it: each step may be awaited by another task.
        until = asyncio.get_running_loop().time() + COMMAND_TIMEOUT_S
        try:
            rest = b""
            while data := await _before(until, process.stdout.read(_PIECE)):
                *lines, rest = (rest + data).split(b"\n")
                # Of a line without end the beginning is enough.
                rest = rest[: 4 * MAX_LINE]
                for line in lines:
                    last.append(_text(line))
                    yield last[-1]
            if rest:
                last.append(_text(rest))
                yield last[-1]
            code = await _before(until, process.wait())
        except TimeoutError:
            raise AgentError(f"{doing} took longer than {COMMAND_TIMEOUT_S:g} s", hint="try again") from None
    if code not in allowed:
        raise failure(doing, "\n".join(last))


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()[:MAX_LINE]


async def _before(at: float, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout_at(at):
        return await work


def failure(doing: str, said: str) -> InvalidParameters:
    """What a failed program's last lines mean to the user."""
    words = _NO_WHEELS.findall(" ".join(said.split()))
    lacking = sorted({name[0] for word in words if (name := _NAME.search(word))})
    hint = "correct the requirements; versions and names are looked up in the server's package index"
    if lacking:
        hint = f"only wheels are installed, and {', '.join(lacking)} has none that fits: choose another version"
    return InvalidParameters(f"{doing} failed:\n{said}", hint=hint)


@contextlib.asynccontextmanager
async def _ending(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Leave neither the process nor its children behind."""
    try:
        yield
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
