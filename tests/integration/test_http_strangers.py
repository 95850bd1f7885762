"""Connections of whoever has no credentials: they go, and keep nobody out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from yarl import URL

from roost.server.http import strangers
from tests.servers import Caller

HALF = b"GET /session HTTP/1.1\r\nHost: x\r\n"


@contextlib.asynccontextmanager
async def strangers_of(server: Caller, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    """So many connections, each with half a request."""
    url = URL(server.target.endpoint)
    opened = [await asyncio.open_connection(url.host, url.port) for _ in range(count)]
    for _, writer in opened:
        writer.write(HALF)
    yield [reader for reader, _ in opened]
    for _, writer in opened:
        writer.close()


@pytest.fixture(params=["connections", "strangers"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "connections":
        monkeypatch.setattr(strangers.Strangers.__init__, "__defaults__", (4,))
    else:
        monkeypatch.setattr(strangers, "MOST", 4)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "KNOWN_WITHIN_S", 0.2)


async def test_where_there_are_too_many_the_oldest_stranger_goes(few: None, server: Caller) -> None:
    assert (await server("GET", "/session")).status == 200  # on a connection that stays

    async with strangers_of(server, 10) as readers:
        assert await readers[0].read() == b""
        assert (await server("GET", "/session")).status == 200


async def test_a_stranger_has_only_so_long(impatient: None, server: Caller) -> None:
    async with strangers_of(server, 1) as [reader]:
        assert await reader.read() == b""


async def test_whoever_is_recognised_may_stay(impatient: None, server: Caller) -> None:
    made = await server("POST", "/session", {"name": "class-7", "image": "python"})
    assert made.status == 201
    result = await server.execute("class-7", "import time; time.sleep(1); print('still here')")

    assert "".join(text for _, text in result["console"]) == "still here\n"
