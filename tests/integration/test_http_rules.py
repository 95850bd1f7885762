"""What holds for every request: who may ask, in which version, and how a no is said."""

import asyncio
import gzip
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import compression_utils, web_protocol
from yarl import URL

from roost.client.api import Target
from roost.server.http.problems import STATUSES
from roost.server.services.runs import Runs
from roost.wire.errors import error_classes
from roost.wire.versions import ACCEPTED_VERSIONS
from tests.servers import Caller


@pytest.fixture
def token(server: Caller, data_dir: Path) -> str:
    """The administrator's token."""
    return str(json.loads((data_dir / "admin.json").read_text())["token"])


def test_every_error_has_a_status() -> None:
    of_the_wire = {cls.code for cls in error_classes() if cls.__module__ == "roost.wire.errors"}

    assert of_the_wire <= set(STATUSES)


async def test_the_root_answers_anybody_with_the_version_that_it_speaks(server: Caller) -> None:
    async with server.http.get(server.target.endpoint) as raw:
        body = await raw.json()

    assert body["version"] == "v7.20230615"
    assert raw.headers["Server"] == "BackendAI"
    assert raw.headers["X-RateLimit-Limit"] == "1000"


@pytest.mark.parametrize("path", ["/session", "/session/some", "/session/some/runs"])
async def test_without_credentials_the_answer_is_no(server: Caller, path: str) -> None:
    now = datetime.now(UTC).isoformat()

    async with server.http.get(server.target.endpoint + path, headers={"Date": now}) as raw:
        assert (raw.status, (await raw.json())["type"].rpartition("/")[2]) == (401, "auth-failed")
    async with server.http.get(server.target.endpoint + path) as raw:
        assert (raw.status, (await raw.json())["type"].rpartition("/")[2]) == (400, "invalid-auth-params")


async def test_a_wrong_secret_is_refused(server: Caller) -> None:
    liar = Caller(
        Target(endpoint=server.target.endpoint, access_key=server.target.access_key, secret_key="x" * 40), server.http
    )

    assert (await liar("GET", "/session")).status == 401


async def test_a_token_is_as_good_as_a_signature(server: Caller, token: str) -> None:
    bearer = Caller(Target(endpoint=server.target.endpoint, token=token), server.http)
    forger = Caller(Target(endpoint=server.target.endpoint, token=token + "x"), server.http)

    assert (await bearer("GET", "/session")).status == 200
    assert (await forger("GET", "/session")).status == 401


async def test_an_old_signature_is_refused(server: Caller) -> None:
    late = (datetime.now(UTC) - timedelta(minutes=16)).isoformat()

    reply = await server("GET", "/session", headers={"Date": late})

    assert (reply.status, reply.slug) == (400, "invalid-auth-params")


@pytest.mark.parametrize("version", ACCEPTED_VERSIONS)
async def test_every_version_from_v4_on_is_spoken(server: Caller, version: str) -> None:
    reply = await server("GET", "/", headers={"X-BackendAI-Version": version})

    assert reply.status == 200


async def test_an_unknown_version_is_refused_with_those_that_are_known(server: Caller) -> None:
    reply = await server("GET", "/", headers={"X-BackendAI-Version": "v9.20300101"})

    assert (reply.status, reply.slug) == (400, "generic-bad-request")
    assert "v7.20230615" in reply.body["hint"]


async def test_unknown_paths_and_methods_are_problems_too(server: Caller) -> None:
    lost = await server("GET", "/nowhere")
    wrong = await server("PUT", "/session")

    assert (lost.status, lost.slug) == (404, "generic-not-found")
    assert (wrong.status, wrong.slug) == (405, "method-not-allowed")
    assert wrong.headers["Allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"runId": 1e999}'])
async def test_a_body_that_cannot_be_read_is_a_400(server: Caller, token: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    for path in ("/session", "/session/nope", "/session/nope/runs"):
        async with server.http.post(server.target.endpoint + path, data=body, headers=headers) as raw:
            assert raw.status == 400, path
            assert raw.content_type == "application/problem+json"


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
async def test_a_body_that_is_nested_too_deeply_is_a_400(server: Caller, headers: dict[str, str]) -> None:
    nested: list[Any] = []
    for _ in range(500):
        nested = [nested]
    body = {"name": "class-7", "image": "python", "config": {"resource_opts": {"x": nested}}}

    for path in ("/session", "/session/_/create"):
        reply = await server("POST", path, body, headers=headers)
        assert (reply.status, reply.slug) == (400, "invalid-api-params")
        assert "nested" in reply.body["msg"]


async def test_a_body_that_is_not_as_it_is_encoded_is_a_400(
    server: Caller, caplog: pytest.LogCaptureFixture, token: str
) -> None:
    headers = {"Content-Encoding": "gzip", "Authorization": f"Bearer {token}"}
    async with server.http.post(server.target.endpoint + "/session", data=b"no gzip", headers=headers) as raw:
        assert (raw.status, (await raw.json())["type"].rpartition("/")[2]) == (400, "generic-bad-request")

    assert (await server("GET", "/session")).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("path", ["/healthz", "/session", "/nowhere"])
async def test_a_packed_body_is_refused_before_anybody_unpacks_it(
    server: Caller, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    unpacked: list[int] = []
    unpack = compression_utils.ZLibDecompressor.decompress_sync

    def note(self: compression_utils.ZLibDecompressor, data: bytes, *args: Any, **kwargs: Any) -> bytes:
        unpacked.append(len(data))
        return unpack(self, data, *args, **kwargs)

    monkeypatch.setattr(compression_utils.ZLibDecompressor, "decompress_sync", note)
    url, body = server.target.endpoint + path, gzip.compress(bytes(1 << 20))
    async with server.http.post(url, data=body, headers={"Content-Encoding": "GZip"}) as raw:
        assert raw.status == 400
        assert "Content-Encoding" in (await raw.json())["msg"]
    assert (await server("GET", "/session")).status == 200  # by then the rest of the body is read

    assert unpacked == []


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/9.9", b"GET /" + b"a" * 10_000 + b" HTTP/1.1", b"OPTIONS * HTTP/1.1", b"\x16\x03\x01\x02"],
)
async def test_what_is_no_http_is_answered_and_no_error_of_the_servers(
    server: Caller, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    url = URL(server.target.endpoint)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + line + b"\r\n\r\n")
    answers = await reader.read()
    writer.close()

    assert b" 400 " in answers
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_small_answers_are_not_held_back(server: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TCP_NODELAY each small answer on a kept connection waits 40 ms for an acknowledgement."""
    accepted: list[socket.socket] = []
    made = web_protocol.RequestHandler.connection_made

    def note(self: web_protocol.RequestHandler, transport: object) -> None:
        made(self, transport)  # type: ignore[arg-type]
        accepted.append(transport.get_extra_info("socket"))  # type: ignore[attr-defined]

    monkeypatch.setattr(web_protocol.RequestHandler, "connection_made", note)
    async with server.http.get(server.target.endpoint + "/healthz", headers={"Connection": "close"}) as raw:
        assert raw.status == 200
    async with server.http.get(server.target.endpoint + "/healthz") as raw:
        assert raw.status == 200

    assert accepted
    assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in accepted if one.fileno() >= 0)


async def test_an_answer_that_cannot_go_on_is_broken_off(server: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    await server("POST", "/session", {"name": "class-7", "image": "python"})
    await server("POST", "/session/class-7/runs", {"run_id": "one", "code": "input()"})
    read = Runs.read

    async def fail_later(runs: Runs, *arguments: Any, **more: Any) -> Any:
        if "wait_s" in more:
            raise RuntimeError("a disk that cannot be read")
        return await read(runs, *arguments, **more)

    monkeypatch.setattr(Runs, "read", fail_later)

    with pytest.raises(aiohttp.ClientError):
        async with asyncio.timeout(30):
            await server.events("class-7", "one")
