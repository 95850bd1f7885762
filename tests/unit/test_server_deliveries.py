"""When the cursor of the compatible poll moves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from roost.server.http.deliveries import Deliveries
from roost.server.services.runs import Polled

SESSION: Any = SimpleNamespace(id="s1")
ANSWER = Polled(run_id="r1", status="continued", exit_code=None, options=None, console=[], after=0, seq=3)


class Told:
    """Stands for the service; what it was told, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def delivered(self, session: Any, polled: Polled) -> None:
        self.calls.append("delivered")

    async def undelivered(self, session: Any, polled: Polled) -> None:
        self.calls.append("undelivered")


@contextlib.asynccontextmanager
async def a_connection() -> AsyncIterator[asyncio.Transport]:
    """The server's end of one, whose client reads nothing and asks nothing."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    _, client = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer = await asyncio.wait_for(accepted, 10)
    yield cast(asyncio.Transport, writer.transport)
    for end in (client, writer):
        end.close()
    server.close()
    await server.wait_closed()


async def test_the_cursor_moves_when_the_answer_was_written() -> None:
    runs = Told()

    async def write() -> bool:
        runs.calls.append("written")
        return True

    async with a_connection() as transport:
        await Deliveries(cast(Any, runs)).deliver(SESSION, ANSWER, transport, write())

    assert runs.calls == ["written", "delivered"]


@pytest.mark.parametrize("failure", [ConnectionResetError, asyncio.CancelledError])
async def test_the_cursor_stays_when_writing_failed_or_was_cancelled(failure: type[BaseException]) -> None:
    runs = Told()

    async def write() -> bool:
        raise failure

    async with a_connection() as transport:
        deliveries = Deliveries(cast(Any, runs))
        with pytest.raises(failure):
            await deliveries.deliver(SESSION, ANSWER, transport, write())
        await deliveries.settle("s1", "r1", transport)

    assert runs.calls == []
