"""`make bench`: roost and a Jupyter kernel, measured in turns on this machine.

Times are those that a client sees, its own work included; roost's requests are signed and share one kept-alive
connection. Fails where the peer did not run.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.figures import Samples, contention, header, row, timed
from benchmarks.memory import MIB, pss_of_tree, rss
from benchmarks.peer import JupyterKernel, PeerMissing, load_peer
from benchmarks.server import BenchServer, BenchSession


def main() -> int:
    options = _options()
    # Both sides run from bytecode, as installed packages do, also where this machine's environment keeps none.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    results: dict[str, Samples] = {}
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
    parser.add_argument("--live", type=int, default=5, help="idle sessions, and kernels, alive at once")
    return parser.parse_args()


async def _measure(options: argparse.Namespace, folder: Path, results: dict[str, Samples]) -> None:
    """Fill `results`; roost and the peer take turns, so that what else the machine does hits both."""
    load_peer(folder)  # without it nothing else is worth the time
    for number in range(options.starts):
        async with BenchServer(folder / f"start-{number}") as server:
            results.setdefault("server start", Samples()).add(server.started_in_s)
    async with BenchServer(folder / "data") as server:
        _add(results, "server at rest, RSS", rss(server.pid))
        _add(results, "server at rest, PSS", pss_of_tree(server.pid, alone=True))
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
                results.setdefault("contention", Samples()).add(contention())
        await session.destroy()
        await _measure_idle(server, folder, results, options.live)


async def _create_and_destroy(server: BenchServer, results: dict[str, Samples]) -> None:
    with timed(results, "create a session"):
        session = await server.create()
    await session.execute()  # it was usable
    with timed(results, "destroy it"):
        await session.destroy()


def _start_kernel(results: dict[str, Samples], folder: Path) -> None:
    with timed(results, "peer: create a session"):
        kernel = JupyterKernel(folder)
    with timed(results, "peer: destroy it"):
        kernel.close()


async def _warm_up(session: BenchSession, kernel: JupyterKernel) -> None:
    kernel.settle()
    for _ in range(20):
        await session.execute()
        await session.run()
        kernel.execute()


async def _run_turn(session: BenchSession, kernel: JupyterKernel, results: dict[str, Samples], count: int) -> None:
    for _ in range(count):
        with timed(results, "1+1, compatible call"):
            await session.execute()
    for _ in range(count):
        with timed(results, "1+1, run and its events"):
            await session.run()
    for _ in range(count):
        with timed(results, "peer: 1+1, compatible call"):
            kernel.execute()
    results["peer: 1+1, run and its events"] = results["peer: 1+1, compatible call"]


async def _measure_idle(server: BenchServer, folder: Path, results: dict[str, Samples], live: int) -> None:
    sessions = [await server.create() for _ in range(live)]
    for session in sessions:
        await session.execute()
    for session in sessions:
        _add(results, "idle session, PSS", pss_of_tree(session.pid))
    _add(results, "server with idle sessions, PSS", pss_of_tree(server.pid, alone=True))
    for session in sessions:
        await session.destroy()
    kernels = [JupyterKernel(folder) for _ in range(live)]
    for kernel in kernels:
        kernel.settle()
        kernel.execute()
    for kernel in kernels:
        _add(results, "peer: idle session, PSS", pss_of_tree(kernel.pid))
    for kernel in kernels:
        kernel.close()


def _add(results: dict[str, Samples], name: str, value: int | None) -> None:
    if value is not None:
        results.setdefault(name, Samples()).add(value / MIB)


def _share(total: int, rounds: int, number: int) -> int:
    return total * (number + 1) // rounds - total * number // rounds


def _print(results: dict[str, Samples]) -> None:
    print(header())
    for name, unit, target in (
        ("server start", "ms", None),
        ("create a session", "ms", 40.0),
        ("destroy it", "ms", None),
        ("1+1, compatible call", "ms", 1.0),
        ("1+1, run and its events", "ms", None),
        ("server at rest, RSS", "MiB", None),
        ("server at rest, PSS", "MiB", 90.0),
        ("server with idle sessions, PSS", "MiB", None),
        ("idle session, PSS", "MiB", 5.0),
    ):
        print(row(name, results.get(name), results.get(f"peer: {name}"), unit, target))
    if busy := results.get("contention"):
        print(f"contention {busy.median:.2f}, at worst {max(busy.values):.2f} (1.0: nobody else used the processors)")


if __name__ == "__main__":
    sys.exit(main())
