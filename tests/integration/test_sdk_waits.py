"""What the SDK says and does while a session cannot start."""

import asyncio
import os
from pathlib import Path

import pytest

from roost.client.handle import SessionSettings, async_session
from roost.wire.errors import SessionNotRunning
from tests.servers import Caller, a_server


async def test_a_session_that_has_to_wait_says_why_and_starts_when_it_can(data_dir: Path) -> None:
    told: list[str] = []
    async with a_server(data_dir, overcommit_cpu=1 / (os.cpu_count() or 1)) as server:  # room for one
        assert (await server("POST", "/session", {"name": "full", "image": "python"})).body["status"] == "RUNNING"
        heard = asyncio.Event()

        def hear(sentence: str) -> None:
            told.append(sentence)
            heard.set()

        async def use() -> str:
            async with async_session("class-7", target=server.target, on_wait=hear) as session:
                return (await session.run("6 * 7")).text

        using = asyncio.create_task(use())
        await asyncio.wait_for(heard.wait(), 30)
        await server("DELETE", "/session/full")

        assert await asyncio.wait_for(using, 30) == "42"
        assert len(told) == 1
        assert "cpu" in told[0]
        assert (await server("GET", "/session")).body == []


async def test_who_gives_up_waiting_leaves_nothing_in_the_queue(data_dir: Path) -> None:
    async with a_server(data_dir, overcommit_cpu=0.1) as server:
        heard = asyncio.Event()

        async def use() -> None:
            async with async_session("class-7", target=server.target, on_wait=lambda _: heard.set()):
                raise AssertionError("there was no room")

        using = asyncio.create_task(use())
        await asyncio.wait_for(heard.wait(), 30)
        using.cancel()
        await asyncio.wait([using], timeout=30)

        [session] = (await server("GET", "/session", params={"status": "all"})).body
        assert session["status"] == "CANCELLED"


async def test_a_session_that_cannot_start_is_an_error_with_its_reason(server: Caller) -> None:
    settings = SessionSettings(resource_opts={"runtime": "no-such"})

    with pytest.raises(SessionNotRunning, match="no-such"):
        await async_session("class-7", settings=settings, target=server.target).__aenter__()
