"""The composition root: settings in, a running server out."""

import asyncio
import contextlib
import fcntl
import functools
import importlib.metadata
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from roost.engines.base import Engine, EngineConfig
from roost.server.auth.authenticators import BearerAuthenticator, SignatureAuthenticator
from roost.server.auth.keys import KeyRing
from roost.server.auth.secrets import SecretBox, secret_of_file
from roost.server.events.memory import MemoryBus
from roost.server.http.context import STRANGERS
from roost.server.http.routes import make_web_app
from roost.server.scheduler.ledger import Ledger
from roost.server.scheduler.lives import Lives
from roost.server.scheduler.loop import Scheduler
from roost.server.services.accounts import Credentials, ensure_admin
from roost.server.services.files import Files
from roost.server.services.images import Images
from roost.server.services.platform import Platform
from roost.server.services.recorder import RunRecorder
from roost.server.services.runs import Runs
from roost.server.services.sessions import Sessions
from roost.server.services.templates import Templates
from roost.server.services.webhooks import Webhooks
from roost.server.settings import Settings
from roost.server.store.sql import SqlStore
from roost.wire.errors import InvalidParameters, RoostError

SHUTDOWN_S = 1.0
"""How long requests that wait, event streams among them, are given when the server stops."""

BACKLOG = 1024
"""As many connections wait to be accepted."""

log = structlog.get_logger(__name__)


class AlreadyRunning(RoostError):
    """Another server runs on this data folder."""

    code = "already-running"
    hint = "`roost status` tells where; `roost down` stops it"


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """Serve for as long as the block lasts; gives the endpoint.

    `server.json` appears once everything works, and goes with the block. Sessions outlive it.

    Raises:
        AlreadyRunning: the data folder has a server.
        InvalidParameters: there is no such engine, or the address cannot be listened on.
    """
    data_dir = settings.data_dir
    async with contextlib.AsyncExitStack() as opened:
        data_dir.mkdir(parents=True, exist_ok=True)
        opened.enter_context(_locked(data_dir / "server.lock"))
        store = SqlStore(data_dir / "roost.db")
        await store.open()
        opened.push_async_callback(store.aclose)
        box = SecretBox.of_file(data_dir / "secrets.key")
        admin = await ensure_admin(store, box, _known_token(data_dir / "admin.json"))
        engine = _engine(settings.engine)
        await engine.open(
            EngineConfig(
                data_dir=data_dir,
                overcommit_cpu=settings.overcommit_cpu,
                overcommit_mem=settings.overcommit_mem,
                log_cap_bytes=settings.log_cap_bytes,
                log_keep_s=settings.log_keep_s,
            )
        )
        opened.push_async_callback(engine.aclose)
        bus = MemoryBus()
        ledger = Ledger(store, bus)
        images = Images(engine, store)
        await images.open()
        secret = secret_of_file(data_dir / "webhooks.key")
        webhooks = Webhooks(store, bus, secret, settings.webhooks_allow_private)
        await webhooks.open()
        opened.push_async_callback(webhooks.aclose)
        lives = Lives(ledger, engine)
        scheduler = Scheduler(ledger, engine, bus, lives)
        recorder = RunRecorder(store, engine, ledger, lives.on_run_ended)
        await recorder.open()
        opened.push_async_callback(recorder.aclose)
        opened.push_async_callback(lives.aclose)
        await scheduler.open()
        opened.push_async_callback(scheduler.aclose)
        keys = KeyRing(store, box)
        platform = Platform(
            authenticators=(BearerAuthenticator(keys), SignatureAuthenticator(keys)),
            keys=keys,
            images=images,
            sessions=Sessions(store, ledger, lives, images, bus, settings.webhooks_allow_private),
            runs=Runs(store, engine),
            files=Files(engine),
            templates=Templates(store),
        )
        endpoint = await opened.enter_async_context(_listening(make_web_app(platform), settings.host, settings.port))
        opened.enter_context(_announced(data_dir, endpoint, admin))
        log.info("server.started", endpoint=endpoint, data_dir=str(data_dir))
        yield endpoint
        log.info("server.stopping")


def _engine(name: str) -> Engine:
    found = importlib.metadata.entry_points(group="roost.engines", name=name)
    if not found:
        names = ", ".join(sorted(importlib.metadata.entry_points(group="roost.engines").names))
        raise InvalidParameters(f"there is no engine {name!r}", hint=f"the engines here are {names}")
    engine: Engine = next(iter(found)).load()()
    return engine


@contextlib.asynccontextmanager
async def _listening(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None, logger=_http_log(), auto_decompress=False, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            listener = socket.create_server((host, port), family=_family(host), reuse_port=False, backlog=BACKLOG)
        except OSError as error:
            raise InvalidParameters(f"cannot listen on {host} port {port}: {error.strerror}") from error
        assert runner.server is not None
        connect = functools.partial(app[STRANGERS].connect, runner.server)
        listening = await asyncio.get_running_loop().create_server(connect, sock=listener, backlog=BACKLOG)
        bound = listener.getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        try:
            yield f"http://{shown}:{bound[1]}"
        finally:
            listening.close()
    finally:
        await runner.cleanup()


def _http_log() -> logging.Logger:
    """aiohttp's, without the faults of clients: what is no HTTP is answered, and concerns no operator."""
    logger = logging.getLogger("roost.server.http")
    if not logger.filters:
        logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))
    return logger


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the data folder's lock; the kernel lets go of it when we die."""
    with path.open("a") as file:
        path.chmod(0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another server runs on {path.parent}") from None
        yield


@contextlib.contextmanager
def _announced(data_dir: Path, endpoint: str, admin: Credentials) -> Iterator[None]:
    """Tell clients of this machine where we are. `server.json` comes last: who sees it finds the rest."""
    path = data_dir / "server.json"
    _write_private(
        data_dir / "admin.json",
        {
            "endpoint": endpoint,
            "access_key": admin.access_key,
            "secret_key": admin.secret_key,
            "token": admin.token,
        },
    )
    # The time is that of proc(5), stat, field 22; the name before it may hold blanks.
    start_time = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    us = {"endpoint": endpoint, "pid": os.getpid(), "start_time": int(start_time), "boot_id": boot_id}
    _write_private(path, us)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _write_private(path: Path, values: dict[str, Any]) -> None:
    making = path.with_suffix(".new")
    making.unlink(missing_ok=True)
    descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(values, file)
    making.rename(path)


def _known_token(path: Path) -> str | None:
    try:
        token = json.loads(path.read_text())["token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is made anew
    return token if isinstance(token, str) else None


async def serve_until(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    async with serving(settings):
        await stop.wait()
