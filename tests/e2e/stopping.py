"""Seams that stop their process at one point of a launch or an end, so that a test can kill it there.

`STOP_AT` names the point. A server takes them like anybody's adapters, by entry points: see `adapters`.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from roost.agent.layout import run_dir
from roost.engines.local import LocalEngine
from roost.runner import keeper
from roost.runtimes.base import Place, SandboxHandle
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.wire.agent import Agent
from roost.wire.sandboxes import Isolation, Rung, RuntimeProbe, SandboxInfo, SandboxSpec, SandboxStats

ENTRY_POINTS = """
[roost.runtimes]
stopping = tests.e2e.stopping:StoppingRuntime
[roost.engines]
stopping = tests.e2e.stopping:StoppingEngine
"""


def adapters(folder: Path, point: str) -> dict[str, str]:
    """Install the adapters into a folder; gives the environment of a server that finds them."""
    metadata = folder / "stopping-1.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stopping\nVersion: 1\n")
    return {"PYTHONPATH": str(folder), "STOP_AT": point}


def start_stopping_keeper(data_dir: Path, point: str) -> None:
    """Start the keeper that the server will find; it stops once, inside its first spawn."""
    folder = run_dir(data_dir)
    folder.mkdir(parents=True, mode=0o711)
    program = [sys.executable, "-m", "tests.e2e.stopping", str(folder), str(data_dir / "keeper.log")]
    subprocess.run(
        program,
        check=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "STOP_AT": point},
    )


def stop(point: str) -> None:
    """Stop this process, once, if this is the point."""
    if os.environ.get("STOP_AT") == point:
        del os.environ["STOP_AT"]
        os.kill(os.getpid(), signal.SIGSTOP)


class StoppingRuntime(BubblewrapRuntime):
    """bubblewrap, taken before it where both are installed."""

    name = "stopping"

    def probe(self) -> RuntimeProbe:
        return msgspec.structs.replace(super().probe(), rung=Rung.CONTAINER)

    def isolation(self, spec: SandboxSpec, place: Place) -> Isolation:
        stop("prepared")
        return super().isolation(spec, place)

    async def launch(self, spec: SandboxSpec, place: Place, keeper: Any) -> SandboxHandle:
        stop("recorded")
        handle = await super().launch(spec, place, _StoppingKeeper(keeper))  # type: ignore[arg-type]
        socket_name = msgspec.json.decode((place.folder / "sandbox.json").read_bytes())["socket"]
        async with asyncio.timeout(30):
            while not _is_listening(socket_name):
                await asyncio.sleep(0.005)
        stop("listening")
        return handle


class _StoppingKeeper:
    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    async def spawn(self, *arguments: Any, **options: Any) -> tuple[int, int]:
        asking = asyncio.create_task(self._keeper.spawn(*arguments, **options))
        await asyncio.sleep(0)  # the request is sent in the task's first step
        stop("asked")
        answer: tuple[int, int] = await asking
        stop("spawned")
        return answer


class StoppingEngine(LocalEngine):
    """The local engine, whose agent stops around what the scheduler asks of it."""

    async def agent(self, node_id: str) -> Agent:
        return _StoppingAgent(await super().agent(node_id))  # type: ignore[return-value]


class _StoppingAgent:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    async def launch(self, spec: SandboxSpec) -> SandboxInfo:
        info = await self._agent.launch(spec)
        stop("adopted")
        return info

    async def restart(self, session_id: str) -> SandboxInfo:
        info = await self._agent.restart(session_id)
        stop("restarted")
        return info

    async def destroy(self, session_id: str) -> SandboxStats:
        stop("terminating")
        stats = await self._agent.destroy(session_id)
        stop("destroyed")
        return stats


def _is_listening(socket_name: str) -> bool:
    """Whether a unix socket of this name listens; its flags have `__SO_ACCEPTCON` then."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        if line.endswith(f"/{socket_name}"):
            return bool(int(line.split()[3], 16) & 0x10000)
    return False


def _stopping_update(path: str, fields: dict[str, Any], update: Any = keeper._update) -> None:
    stop("gate")
    update(path, fields)
    stop("written")


if __name__ == "__main__":
    keeper._update = _stopping_update
    sys.exit(keeper.start(sys.argv[1], sys.argv[2]))
