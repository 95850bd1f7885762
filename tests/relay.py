"""A network that breaks where a test wants it to."""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit

WAIT_S = 30.0


class Cut(NamedTuple):
    """Where one connection breaks."""

    up: int | None = None
    """after so many bytes of the request; None lets all of it through"""
    down: int | None = None
    """after so many bytes of the answer, from its end where negative: then the server has seen all of it go"""
    arrives: bool = False
    """Whether what was let through arrives; else the connection is reset, and much of it is lost."""


class Relay:
    """Passes connections on to a server; each takes the next of `cuts`, and goes whole when there is none.

    A connection that is cut is one request and its answer.
    """

    def __init__(self, target: str) -> None:
        self._host, self._port = urlsplit(target).hostname, urlsplit(target).port
        self.cuts: deque[Cut] = deque()
        self.endpoint = ""
        self._open: set[asyncio.StreamWriter] = set()

    def drop(self) -> None:
        """Break every connection that is open."""
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self.cuts.popleft() if self.cuts else None
        to_server: asyncio.StreamWriter | None = None
        sending: asyncio.Task[None] | None = None
        self._open.add(writer)
        try:
            async with asyncio.timeout(WAIT_S):
                from_server, to_server = await asyncio.open_connection(self._host, self._port)
                if cut is not None and cut.up is not None:
                    to_server.write(await reader.readexactly(cut.up))
                    await to_server.drain()
                    return
                sending = asyncio.create_task(_pump(reader, to_server))
                if cut is None or cut.down is None:
                    await _pump(from_server, writer)
                    return
                limit = cut.down
                content = await (_answer(from_server) if limit < 0 else from_server.readexactly(limit))
                writer.write(content[:limit] if limit < 0 else content)
                await writer.drain()
        finally:
            self._open.discard(writer)
            if sending is not None:
                sending.cancel()
            for end in (writer, to_server):
                if end is not None:
                    end.close() if cut is None or cut.arrives else end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None, head
    return head + await reader.readexactly(int(length[1]))


@contextlib.asynccontextmanager
async def a_relay(target: str) -> AsyncIterator[Relay]:
    """A relay on a free port of loopback."""
    relay = Relay(target)
    async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as server:
        relay.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield relay
