"""Large bodies: one caller's take only so much of the server's memory at a time."""

import asyncio
import io
from collections.abc import AsyncIterator

import pytest

from roost.server.http import bodies
from tests.servers import Caller

LARGE = b"{" + b" " * (2 << 20)


async def test_large_bodies_wait_for_those_before_them_and_small_ones_do_not(
    server: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MOST", 3 << 20)
    sent, rest = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield LARGE
        sent.set()
        await rest.wait()

    async def post(content: io.BytesIO | AsyncIterator[bytes]) -> int:
        return (await server("POST", "/session", data=content)).status

    monkeypatch.setattr(bodies, "MAX_BODY", 2 << 20)
    first = asyncio.create_task(post(slow()))
    await sent.wait()
    second = asyncio.create_task(post(io.BytesIO(LARGE)))

    for _ in range(20):
        assert await post(io.BytesIO(b"{")) == 400
    assert not second.done()
    rest.set()
    assert [await first, await second] == [400, 400]
