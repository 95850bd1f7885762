"""Sessions made, used and ended, several at a time."""

import asyncio
import time
from pathlib import Path

from benchmarks.figures import Results, add
from benchmarks.peer import JupyterKernel
from benchmarks.server import BenchServer

AT_ONCE = 4


async def measure_rates(server: BenchServer, folder: Path, results: Results, sessions: int, kernels: int) -> None:
    """Create, run `1+1`, destroy; the peer does the same with as many kernels at once."""
    started = time.perf_counter()
    await asyncio.gather(*(_use_sessions(server, share) for share in _shares(sessions)))
    add(results, "sessions, 4 at once", sessions / (time.perf_counter() - started))
    started = time.perf_counter()
    await asyncio.gather(*(asyncio.to_thread(_use_kernels, folder, share) for share in _shares(kernels)))
    add(results, "Jupyter: sessions, 4 at once", kernels / (time.perf_counter() - started))


def _shares(total: int) -> list[int]:
    return [total * (place + 1) // AT_ONCE - total * place // AT_ONCE for place in range(AT_ONCE)]


async def _use_sessions(server: BenchServer, count: int) -> None:
    for _ in range(count):
        session = await server.create()
        await session.execute()
        await session.destroy()


def _use_kernels(folder: Path, count: int) -> None:
    for _ in range(count):
        with JupyterKernel(folder) as kernel:
            kernel.settle()
            kernel.execute()
