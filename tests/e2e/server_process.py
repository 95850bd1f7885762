"""A real server in a process of its own, to be killed, and started anew on the same data folder."""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp

from roost.agent.layout import run_dir
from roost.client.api import Target
from roost.client.local import read_local_server
from tests.servers import Caller

ROOT = Path(__file__).parents[2]
START_S = 30.0
_POLL_S = 0.01


class ServerProcess:
    """`python -m roost.server` on a free port. Leaving the block kills it; its sessions go on."""

    def __init__(self, data_dir: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self._data_dir = data_dir
        self._arguments = arguments
        self._environ = {**os.environ, **(environ or {})}

    def __enter__(self) -> "ServerProcess":
        command = [sys.executable, "-m", "roost.server", "--listen", "127.0.0.1:0", "--data-dir", str(self._data_dir)]
        with (self._data_dir / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self._environ,
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    async def stopped(self) -> None:
        """Wait until it has stopped itself, by SIGSTOP."""
        await state_of(self.pid, "T")

    async def announced(self) -> Target:
        """Wait until it serves."""
        async with asyncio.timeout(START_S):
            while (server := read_local_server(self._data_dir)) is None or server.pid != self.pid:
                assert self._process.poll() is None, (self._data_dir / "server.log").read_text()[-4000:]
                await asyncio.sleep(_POLL_S)
        return Target(endpoint=server.endpoint, token=server.token)

    @contextlib.asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """Its administrator, once it serves."""
        async with aiohttp.ClientSession() as http:
            yield Caller(await self.announced(), http)


async def state_of(pid: int, state: str) -> None:
    """Wait until a process is in a state of proc(5), such as T, stopped."""
    async with asyncio.timeout(START_S):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != state:
            await asyncio.sleep(_POLL_S)


def keeper_pid(data_dir: Path) -> int | None:
    """The pid of the keeper that answers now."""
    body = b'{"op": "hello", "id": 1}'
    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.settimeout(START_S)
        try:
            keeper.connect(str(run_dir(data_dir) / "keeper.sock"))
            keeper.sendall(len(body).to_bytes(4, "big") + body)
            answer = keeper.recv(65536)
        except OSError:
            return None
    return int(json.loads(answer[4:])["pid"])


def kill_keeper(data_dir: Path) -> None:
    """Kill the keeper, and wait until its sockets are closed."""
    pid = keeper_pid(data_dir)
    assert pid is not None, "there is no keeper"
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    select.select([descriptor], [], [], START_S)
    os.close(descriptor)


def record_of(data_dir: Path, session_id: str) -> dict[str, object]:
    """A sandbox's `sandbox.json`."""
    record: dict[str, object] = json.loads((data_dir / "sandboxes" / session_id / "sandbox.json").read_text())
    return record
