"""`make bench`: roost and a Jupyter kernel, measured in turns on this machine.

Times are those that a client sees, its own work included; roost's requests are signed and share one kept-alive
connection. Fails where the peer did not run.

Files have another peer: a bare handler of aiohttp's on the same disk.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.figures import MB, Figure, Results, add, contention, header, row, timed
from benchmarks.memory import MIB, in_mib, pss_of_tree, rss
from benchmarks.output import measure_large_writes, measure_lines
from benchmarks.peer import JupyterKernel, PeerMissing, load_peer
from benchmarks.rates import measure_rates
from benchmarks.server import BenchServer, BenchSession
from benchmarks.transfers import measure_transfers


def main() -> int:
    options = _options()
    # Both sides run from bytecode, as installed packages do, also where this machine's environment keeps none.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    results: Results = {}
    problem = None
    with (
        tempfile.TemporaryDirectory(prefix="roost-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        Path(folder).chmod(0o711)  # a session's own uid must reach its home
        try:
            runner.run(_measure(options, Path(folder), results))
        except PeerMissing as error:
            problem = error
    if results:
        _print(results)
    if problem is not None:
        print(f"error: the peer did not run: {problem}\nhint: `make bench` installs it", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="starts of a server")
    parser.add_argument("--creates", type=int, default=60, help="sessions made and ended")
    parser.add_argument("--kernels", type=int, default=10, help="kernels of the peer")
    parser.add_argument("--runs", type=int, default=1000, help="runs of `1+1`")
    parser.add_argument("--live", type=int, default=10, help="idle sessions, and kernels, alive at once")
    parser.add_argument("--rounds", type=int, default=3, help="repeats of all below")
    parser.add_argument("--output", type=int, default=256, help="MB that are written in large pieces")
    parser.add_argument("--lines", type=int, default=20, help="MB that are printed in lines")
    parser.add_argument("--file", type=int, default=64, help="MiB of a file that is copied")
    parser.add_argument("--rate", type=int, default=60, help="sessions that are made, used and ended, four at once")
    parser.add_argument("--full", action="store_true", help="1 GB of output and files of 256 MiB")
    options = parser.parse_args()
    if options.full:
        options.output, options.lines, options.file = 1000, 100, 256
    return options


async def _measure(options: argparse.Namespace, folder: Path, results: Results) -> None:
    """Fill `results`; roost and the peer take turns, so that what else the machine does hits both."""
    load_peer(folder)  # without it nothing else is worth the time
    for number in range(options.starts):
        async with BenchServer(folder / f"start-{number}") as server:
            add(results, "server start", server.started_in_s)
    async with BenchServer(folder / "data") as server:
        add(results, "server at rest, RSS", in_mib(rss(server.pid)))
        add(results, "server at rest, PSS", in_mib(pss_of_tree(server.pid, alone=True)))
        rounds = options.kernels
        for number in range(rounds):
            for _ in range(_share(options.creates, rounds, number)):
                await _create_and_destroy(server, results)
            _start_kernel(results, folder)
        session = await server.create()
        with JupyterKernel(folder) as kernel:
            await _warm_up(session, kernel)
            for number in range(rounds):
                share = _share(options.runs, rounds, number)
                await _run_turn(session, kernel, results, share)
                add(results, "contention", contention())
            for _ in range(options.rounds):
                await measure_large_writes(server, results, options.output * MB)
                await measure_lines(server, kernel, results, options.lines * MB)
        await session.destroy()
        size = options.file * MIB
        await measure_transfers(server, server.data_dir, results, size, options.rounds)
        for _ in range(options.rounds):
            await measure_rates(server, folder, results, options.rate, options.rate // 3)
        await _measure_idle(server, folder, results, options.live)


async def _create_and_destroy(server: BenchServer, results: Results) -> None:
    with timed(results, "create a session"):
        session = await server.create()
    await session.execute()  # it was usable
    with timed(results, "destroy it"):
        await session.destroy()


def _start_kernel(results: Results, folder: Path) -> None:
    with timed(results, "Jupyter: create a session"):
        kernel = JupyterKernel(folder)
    with timed(results, "Jupyter: destroy it"):
        kernel.close()


async def _warm_up(session: BenchSession, kernel: JupyterKernel) -> None:
    kernel.settle()
    for _ in range(20):
        await session.execute()
        await session.run()
        kernel.execute()


async def _run_turn(session: BenchSession, kernel: JupyterKernel, results: Results, count: int) -> None:
    for _ in range(count):
        with timed(results, "1+1, compatible call"):
            await session.execute()
    for _ in range(count):
        with timed(results, "1+1, run and its events"):
            await session.run()
    for _ in range(count):
        with timed(results, "Jupyter: 1+1, compatible call"):
            kernel.execute()
    results["Jupyter: 1+1, run and its events"] = results["Jupyter: 1+1, compatible call"]


async def _measure_idle(server: BenchServer, folder: Path, results: Results, live: int) -> None:
    sessions = [await server.create() for _ in range(live)]
    for session in sessions:
        await session.execute()
    for session in sessions:
        add(results, "idle session, PSS", in_mib(pss_of_tree(session.pid)))
    add(results, "server with idle sessions, PSS", in_mib(pss_of_tree(server.pid, alone=True)))
    for session in sessions:
        await session.destroy()
    kernels = [JupyterKernel(folder) for _ in range(live)]
    for kernel in kernels:
        kernel.settle()
        kernel.execute()
    for kernel in kernels:
        add(results, "Jupyter: idle session, PSS", in_mib(pss_of_tree(kernel.pid)))
    for kernel in kernels:
        kernel.close()


def _share(total: int, rounds: int, number: int) -> int:
    return total * (number + 1) // rounds - total * number // rounds


def _print(results: Results) -> None:
    print(header())
    for figure in _FIGURES:
        print(row(figure, results))
    if busy := results.get("contention"):
        print(f"contention {busy.median:.2f}, at worst {max(busy.values):.2f} (1.0: nobody else used the processors)")


_FIGURES = (
    Figure("server start", "ms"),
    Figure("create a session", "ms", 40.0),
    Figure("destroy it", "ms"),
    Figure("sessions, 4 at once", "/s", 150.0, is_rate=True),
    Figure("1+1, compatible call", "ms", 1.0),
    Figure("1+1, run and its events", "ms"),
    Figure("output, large writes", "MB/s", 150.0, is_rate=True),
    Figure("output, large writes, SDK", "MB/s", is_rate=True),
    Figure("output, print of 100 bytes", "MB/s", is_rate=True),
    Figure("upload", "MB/s", peer="bare", is_rate=True, least_ratio=0.5),
    Figure("download", "MB/s", peer="bare", is_rate=True, least_ratio=0.5),
    Figure("server at rest, RSS", "MiB"),
    Figure("server at rest, PSS", "MiB", 90.0),
    Figure("server before output, PSS", "MiB"),
    Figure("server after output, PSS", "MiB"),
    Figure("server's growth in output, RSS", "MiB", 32.0),
    Figure("server with idle sessions, PSS", "MiB"),
    Figure("idle session, PSS", "MiB", 5.0),
)


if __name__ == "__main__":
    sys.exit(main())
