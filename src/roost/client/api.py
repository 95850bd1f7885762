"""Sends our own endpoints' requests to one server.

What to send and how to read the answer are plain functions at the end of this file; `Api` only moves bytes.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from roost.client import get_user_agent
from roost.client.archives import inside_home, place
from roost.client.auth import generate_signature
from roost.client.config import APIConfig, get_env
from roost.client.errors import NotUnderstood, Unreachable, problem_to_error
from roost.client.local import default_data_dir, ensure_local_server, read_local_server, revive_local_server
from roost.client.sse import SSEMessage, SSEParser
from roost.wire.errors import InvalidParameters, SessionNotFound
from roost.wire.ids import SESSION_REFERENCE
from roost.wire.runs import Event, EventKind
from roost.wire.versions import CLIENT_VERSION

GIVE_UP_AFTER_S = 30.0
"""How long a reader of events tries to reach a server that does not answer."""

REPEAT_FOR_S = 10.0
"""How long a request that may be sent again is; a server that is started anew answers within it."""

UNKNOWN_FOR_S = 2.0
"""The same for a server that has never answered here: its address is more likely wrong than it is being started."""

REVIVE_AFTER_S = 1.0
"""How long a crashed local server is left to whoever else may start it, such as a service manager."""

_CONNECT_TIMEOUT_S = 10.0
_PARTIAL_CONTENT = 206
_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server, and who we are there: a bearer token, or a key pair that signs."""

    endpoint: str
    token: str | None = None
    access_key: str = ""
    secret_key: str = ""
    data_dir: Path | None = None
    """A local server's data folder, which tells where it is after it was started anew."""


class Answer(msgspec.Struct, frozen=True):
    """The parsed body of a success."""

    status: int
    body: Any


def configured_target() -> Target | None:
    """The server that the environment names, if it names one."""
    if get_env("ENDPOINT", None) is None and get_env("ACCESS_KEY", None) is None:
        return None
    config = APIConfig()
    return Target(endpoint=str(config.endpoint), access_key=config.access_key, secret_key=config.secret_key)


def find_target() -> Target:
    """The server to use: the configured one, else this machine's, which is started if it does not run.

    Raises:
        ServerNotStarted: neither is there.
    """
    configured = configured_target()
    if configured is not None:
        return configured
    data_dir = default_data_dir()
    server = ensure_local_server(data_dir)
    return Target(endpoint=server.endpoint, token=server.token, data_dir=data_dir)


class Api:
    """An HTTP client of one server; `async with` opens and closes it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._is_known = target.data_dir is not None
        """Whether the server is known to be there: it has answered, or is this machine's own."""

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        self._http = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = False,
    ) -> Answer:
        """Send a request with a JSON body and read the JSON answer.

        Args:
            headers: further ones, beside those that every request has.
            repeat: whether it may be sent again after a lost connection, since a second time changes nothing.

        Raises:
            RoostError: what the server's problem document says, or `Unreachable`.
        """
        content = None if body is None else json.dumps(body).encode()
        content_type = "text/plain" if body is None else "application/json"
        patience = _Patience((REPEAT_FOR_S if self._is_known else UNKNOWN_FOR_S) if repeat else 0.0)
        while True:
            try:
                async with self._send(
                    method, path, params=params, data=content, content_type=content_type, more=headers
                ) as raw:
                    await self._check(raw)
                    return Answer(raw.status, await _read_json(raw))
            except _LOST as error:
                await self._wait(patience, error)

    async def put_file(self, reference: str, remote: str, local: Path) -> None:
        """Write one file of any size into a session; from its beginning again after a lost connection.

        A pipe or a device gives nothing twice, so it is sent once.
        """
        path = file_path(reference, remote)
        patience = _Patience(REPEAT_FOR_S if local.is_file() else 0.0)
        while True:
            try:
                with local.open("rb") as content:
                    async with self._send("PUT", path, data=content, content_type="application/octet-stream") as raw:
                        await self._check(raw)
                        return
            except _LOST as error:
                await self._wait(patience, error)

    async def get_file(self, reference: str, remote: str, local: Path) -> None:
        """Copy one file of a session to `local`; or a folder, as what lies in `local` then.

        After a lost connection a file goes on where it broke off, if it has not changed since; a folder comes anew.
        A file takes its name when all of it is there.
        """
        path = file_path(reference, remote)
        patience = _Patience(REPEAT_FOR_S)
        with tempfile.TemporaryFile() as content:
            download = _Download(content)
            while not download.is_whole:
                try:
                    async with self._send("GET", path, content_type="text/plain", more=download.headers()) as raw:
                        await self._check(raw)
                        async for _ in download.receive(raw):
                            patience.renew()
                except _LOST as error:
                    await self._wait(patience, error)
            content.seek(0)
            await asyncio.to_thread(place, content, local, download.is_folder)

    async def events(self, reference: str, run_id: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """A run's events with a seq above `after`, each once, up to its `end`; survives lost connections.

        Raises:
            RoostError: the server refuses, or stays unreachable for `GIVE_UP_AFTER_S`.
        """
        path = session_path(reference, "runs", run_id, "events")
        patience = _Patience(GIVE_UP_AFTER_S)
        while True:
            try:
                async with contextlib.aclosing(self._event_messages(path, after)) as received:
                    async for messages in received:
                        patience.renew()
                        for message in messages:
                            event = read_event(message)
                            if event is None or event.seq <= after:
                                continue
                            after = event.seq
                            yield event
                            if event.kind is EventKind.END:
                                return
                problem: Exception = ConnectionError("the stream ended before the run did")
            except _LOST as error:
                problem = error
            await self._wait(patience, problem)

    async def build_image(self, body: Any) -> AsyncGenerator[SSEMessage, None]:
        """What the server says while it builds an image, up to the end; leaving it gives the build up.

        Raises:
            RoostError: the server refuses, or was lost on the way.
        """
        parser = SSEParser()
        content = json.dumps(body).encode()
        with self._reaching():
            try:
                async with self._send("POST", "/image", data=content, content_type="application/json") as raw:
                    await self._check(raw)
                    async for chunk in raw.content.iter_any():
                        for message in parser.feed(chunk):
                            yield message
            except aiohttp.ClientPayloadError as error:
                raise Unreachable(f"{self.target.endpoint} was lost: {error}", hint="build it again") from error

    async def _event_messages(self, path: str, after: int) -> AsyncGenerator[list[SSEMessage], None]:
        """The messages that arrived together; none in a sign of life."""
        parser = SSEParser()
        async with self._send("GET", path, params={"after": str(after)}, content_type=None) as raw:
            await self._check(raw)
            async for chunk in raw.content.iter_any():
                yield parser.feed(chunk)

    async def _wait(self, patience: "_Patience", problem: Exception) -> None:
        """Before the next try: a local server that was started anew is at another port."""
        if patience.is_over():
            raise Unreachable(f"cannot reach {self.target.endpoint}: {problem}") from problem
        await patience.wait()
        data_dir = self.target.data_dir
        if data_dir is not None:
            find = revive_local_server if patience.lost_for_s() > REVIVE_AFTER_S else read_local_server
            server = await asyncio.to_thread(find, data_dir)
            if server is not None:
                self.target = msgspec.structs.replace(self.target, endpoint=server.endpoint, token=server.token)

    def _send(
        self,
        method: str,
        path: str,
        *,
        content_type: str | None,
        params: Mapping[str, str] | None = None,
        data: Any = None,
        more: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        url = build_url(self.target, path, params)
        headers = build_headers(self.target, method, url, content_type, datetime.now(UTC))
        if more:
            headers |= more
        bare = ("Content-Type",) if content_type is None else ()
        return self._http.request(method, url, data=data, headers=headers, skip_auto_headers=bare)

    async def _check(self, raw: aiohttp.ClientResponse) -> None:
        """Raise what the server's problem document says, if it answered with one."""
        self._is_known = True
        if raw.status // 100 != 2:
            raise problem_to_error(raw.status, await _read_json(raw))

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientConnectionError as error:
            raise Unreachable(f"cannot reach {self.target.endpoint}: {error}") from error


class _Download:
    """What has come of a file or folder, and how to ask for what is missing."""

    def __init__(self, content: IO[bytes]) -> None:
        self.is_folder = False
        self.is_whole = False
        self._content = content
        self._etag: str | None = None

    def headers(self) -> dict[str, str]:
        """Of the next request: the rest, where the file is still the same."""
        if self._etag is None or not self._content.tell():
            return {}
        return {"Range": f"bytes={self._content.tell()}-", "If-Range": self._etag}

    async def receive(self, raw: aiohttp.ClientResponse) -> AsyncGenerator[None, None]:
        """Take in an answer; gives something whenever less is missing than ever before."""
        if raw.status != _PARTIAL_CONTENT:
            self._content.seek(0)
            self._content.truncate()
        self.is_folder = raw.content_type == "application/x-tar"
        self._etag = raw.headers.get("ETag")
        async for piece in raw.content.iter_chunked(1 << 20):
            self._content.write(piece)
            if self._etag is not None:
                yield
        self.is_whole = True


class _Patience:
    """How often and how long a lost server is tried."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """The server is there."""
        self._lost_at: float | None = None
        self._delay_s = 0.05

    def lost_for_s(self) -> float:
        """How long the server has been lost; since now, if this is the first question after a renewal."""
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        return now - self._lost_at

    def is_over(self) -> bool:
        return self.lost_for_s() >= self._limit_s

    async def wait(self) -> None:
        await asyncio.sleep(self._delay_s)
        self._delay_s = min(2 * self._delay_s, 2.0)


def session_path(reference: str, *more: str) -> str:
    """The path of a session, or of something in it.

    Raises:
        SessionNotFound: no session could be called so.
        InvalidParameters: of `more` one is empty or made of dots, as nothing is called.
    """
    if not SESSION_REFERENCE.fullmatch(reference):
        raise SessionNotFound(f"there is no session {reference!r:.100}: it is neither id nor name nor their beginning")
    return _path("session", reference, *more)


def image_path(reference: str) -> str:
    """The path of an image.

    Raises:
        InvalidParameters: no image could be called so.
    """
    return _path("image", *reference.split("/"))


def alias_path(alias: str) -> str:
    """The path of an alias of an image.

    Raises:
        InvalidParameters: nothing could be called so.
    """
    return _path("image-alias", *alias.split("/"))


def _path(*parts: str) -> str:
    # However they are quoted, the HTTP library would take them out, and ask for something else.
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidParameters(f"nothing is called {'/'.join(parts[1:])!r:.100}")
    return "/" + "/".join(quote(part, safe=":") for part in parts)


def file_path(reference: str, remote: str) -> str:
    """The path of a file in a session; relative to its home, or absolute within it."""
    path = inside_home(remote)
    # What lies elsewhere is the server's to refuse; as one part it reaches it as it is.
    return session_path(reference, "files", *((str(path),) if path.is_absolute() else path.parts))


def build_url(target: Target, path: str, params: Mapping[str, str] | None = None) -> URL:
    url = URL(target.endpoint.rstrip("/") + path)
    return url.update_query(params) if params else url


def build_headers(target: Target, method: str, url: URL, content_type: str | None, now: datetime) -> dict[str, str]:
    """The headers of a request; the content type of a form is left to the HTTP library, which knows its boundary."""
    headers = {"User-Agent": get_user_agent(), "X-BackendAI-Version": CLIENT_VERSION, "Date": now.isoformat()}
    if content_type is None:
        headers["Accept"] = "text/event-stream"
    elif content_type != "multipart/form-data":
        headers["Content-Type"] = content_type
    if target.token is not None:
        headers["Authorization"] = f"Bearer {target.token}"
    elif target.access_key:
        signed, _ = generate_signature(
            method=method,
            version=CLIENT_VERSION,
            endpoint=URL(target.endpoint),
            date=now,
            rel_url=url.raw_path_qs,
            content_type=content_type or "application/octet-stream",
            access_key=target.access_key,
            secret_key=target.secret_key,
            hash_type="sha256",
        )
        headers |= signed
    return headers


def read_event(message: SSEMessage) -> Event | None:
    """A run's event, or None for messages of other kinds. `data` is JSON in all of them, text too."""
    if message.id is None:
        return None
    try:
        return Event(int(message.id), EventKind(message.event), json.loads(message.data))
    except ValueError as error:
        raise NotUnderstood(f"an event of kind {message.event!r} cannot be read: {error}") from error


async def _read_json(raw: aiohttp.ClientResponse) -> Any:
    content = await raw.read()
    try:
        return json.loads(content.decode("utf-8", "replace")) if content else None
    except ValueError as error:
        if raw.status // 100 != 2:
            return None
        raise NotUnderstood(f"the server answered {raw.status} with something other than JSON") from error
