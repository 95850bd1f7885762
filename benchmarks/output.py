"""How fast what user code writes reaches its reader, and what that costs the server in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from benchmarks.figures import Results, add, moving
from benchmarks.memory import MIB, in_mib, pss_of_tree, rss
from benchmarks.peer import JupyterKernel
from benchmarks.server import BenchServer, BenchSession
from roost.wire.runs import EventKind

LOOK_AFTER_S = 0.05
LINE = "#" * 99
"""With its end a line of 100 bytes."""
WRITTEN = 1 << 20
"""As much is written at once where writes are large."""

_IN_LARGE_WRITES = """
import os
piece = ({line!r} + "\\n").encode() * ({written} // 100)
for _ in range({size} // len(piece)):
    os.write(1, piece)
None
"""
_IN_LINES = """
for _ in range({size} // 100):
    print({line!r})
"""


async def measure_large_writes(server: BenchServer, results: Results, size: int) -> None:
    """Large writes to a reader of server-sent events that parses nothing, and through our client.

    Args:
        size: how much is written each time, in bytes.
    """
    code = _IN_LARGE_WRITES.format(line=LINE, written=WRITTEN, size=size)
    per_write = WRITTEN // 100
    lines = size // (per_write * 100) * per_write
    session = await server.create()
    before = rss(server.pid)
    add(results, "server before output, PSS", in_mib(pss_of_tree(server.pid, alone=True)))
    async with _watched(server.pid) as highest:
        with moving(results, "output, large writes", lines * 100):
            await _read_raw(session, code, lines)
        with moving(results, "output, large writes, SDK", lines * 100):
            await _read_events(session, code, lines)
    add(results, "server after output, PSS", in_mib(pss_of_tree(server.pid, alone=True)))
    add(results, "server's growth in output, RSS", (max(highest) - before) / MIB)
    await session.destroy()


async def measure_lines(server: BenchServer, kernel: JupyterKernel, results: Results, size: int) -> None:
    """`print` of lines of 100 bytes, and the same in a Jupyter kernel."""
    code, lines = _IN_LINES.format(line=LINE, size=size), size // 100
    session = await server.create()
    with moving(results, "output, print of 100 bytes", lines * 100):
        await _read_raw(session, code, lines)
    with moving(results, "Jupyter: output, print of 100 bytes", lines * 100):
        assert kernel.written(code).count(LINE) == lines
    await session.destroy()


async def _read_raw(session: BenchSession, code: str, lines: int) -> None:
    found = 0
    async with session.stream(await session.start(code)) as content:
        async for piece in content:
            found += piece.count(b"#")
    assert found == lines * len(LINE), (found, lines)


async def _read_events(session: BenchSession, code: str, lines: int) -> None:
    found = 0
    async with contextlib.aclosing(session.events(await session.start(code))) as events:
        async for event in events:
            if event.kind is EventKind.STDOUT:
                found += event.data.count("\n")
    assert found == lines, (found, lines)


@contextlib.asynccontextmanager
async def _watched(pid: int) -> AsyncIterator[list[int]]:
    """A process's memory every now and then; the last look is taken when the block ends."""
    seen = [rss(pid)]

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_AFTER_S)
            seen.append(rss(pid))

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()
        seen.append(rss(pid))
