"""An engine of nodes that are not there, and their scripted agents."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager

import msgspec

from roost.engines.base import EngineConfig
from roost.engines.reservations import AccountingEngine
from roost.wire.agent import Agent, OpenFile, SessionFiles
from roost.wire.environments import Environment, EnvironmentRequest
from roost.wire.errors import (
    AgentError,
    FileNotFoundInSession,
    NotFound,
    RoostError,
    RunNotFound,
    SessionNotFound,
    SessionNotRunning,
)
from roost.wire.reasons import Reason
from roost.wire.runs import InterruptOutcome, Page, RunEnd, RunSpec, RunState, RunStatus, RunSummary
from roost.wire.sandboxes import (
    FileInfo,
    Interpreter,
    Isolation,
    Rung,
    RuntimeProbe,
    SandboxEnded,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    SandboxStats,
)


class FakeAgent(Agent):
    """Launches nothing and says so at once, unless told otherwise. Its runs do nothing.

    `launch_error` is raised by every launch and restart while it is set, `destroy_error` by every destroy,
    `start_error` by every start; launches and restarts wait for `may_launch`, which is set at first. A run ends as
    `script` says for its id, else when `finish` is told of it, or with its sandbox.
    """

    def __init__(self) -> None:
        self.launch_error: RoostError | None = None
        self.destroy_error: RoostError | None = None
        self.start_error: RoostError | None = None
        self.script: dict[str, RunEnd] = {}
        """How runs of an id end, as soon as they are started."""
        self.started: list[tuple[str, RunSpec]] = []
        """Every run that was begun, with its session, in order."""
        self.homes: dict[str, dict[str, bytes]] = {}
        """What was written into each session's home, by path."""
        self._runs: dict[str, dict[str, RunSummary]] = {}
        """By session and id; they outlive their sandboxes."""
        self._changed = asyncio.Condition()
        self.may_launch = asyncio.Event()
        self.may_launch.set()
        self.launched: list[SandboxSpec] = []
        """Every launch that was asked for, in order."""
        self.restarted: list[str] = []
        """Every restart that was asked for, in order."""
        self.built: set[str] = set()
        """The digests of environments that are there."""
        self.running: dict[str, SandboxInfo] = {}
        self.found_lost: list[SandboxEnded] = []
        """What `lost` answers."""
        self.finished_runs: asyncio.Queue[tuple[str, RunSummary]] = asyncio.Queue()
        """What `finished` tells."""
        self._ended: asyncio.Queue[SandboxEnded] = asyncio.Queue()

    async def finish(self, session_id: str, run_id: str, end: RunEnd) -> None:
        """Let a run end."""
        async with self._changed:
            run = self._runs[session_id][run_id]
            ended = msgspec.structs.replace(run, state=RunState.ENDED, end=end, ended_at=time.time())
            self._runs[session_id][run_id] = ended
            self._changed.notify_all()

    async def die(self, session_id: str, reason: Reason) -> None:
        """Let a sandbox go away by itself."""
        del self.running[session_id]
        await self._lose_runs(session_id, reason)
        self._ended.put_nowait(SandboxEnded(session_id=session_id, reason=reason, exit_code=1))

    async def interpreters(self) -> list[Interpreter]:
        return [Interpreter(language="python", version="3.11", path="/usr/bin/python3.11")]

    async def build(self, request: EnvironmentRequest) -> AsyncGenerator[str | Environment, None]:
        lock = request.requirements if request.lock is None else request.lock
        yield "nothing is installed"
        digest = hashlib.sha256(lock.encode()).hexdigest()
        self.built.add(digest)
        yield Environment(digest=digest, lock=lock, size_bytes=len(lock))

    async def environments(self) -> list[str]:
        return sorted(self.built)

    async def remove_environment(self, digest: str) -> None:
        self.built.discard(digest)

    async def probe(self) -> list[RuntimeProbe]:
        return [RuntimeProbe(runtime="fake", available=True, rung=Rung.PROCESS)]

    async def launch(self, spec: SandboxSpec) -> SandboxInfo:
        self.launched.append(spec)
        await self.may_launch.wait()
        if self.launch_error is not None:
            raise self.launch_error
        info = SandboxInfo(
            session_id=spec.session_id,
            state=SandboxState.RUNNING,
            runtime="fake",
            isolation=Isolation(rung=Rung.PROCESS),
            launched_at=time.time(),
        )
        return self.running.setdefault(spec.session_id, info)

    async def restart(self, session_id: str) -> SandboxInfo:
        self._check(session_id)
        self.restarted.append(session_id)
        await self._lose_runs(session_id, Reason(code="session-restarted", sentence="it was restarted"))
        info = self.running[session_id]
        self.running[session_id] = msgspec.structs.replace(info, state=SandboxState.RESTARTING)
        await self.may_launch.wait()
        if self.launch_error is not None:
            raise self.launch_error
        self.running[session_id] = msgspec.structs.replace(info, state=SandboxState.RUNNING, launched_at=time.time())
        return self.running[session_id]

    async def destroy(self, session_id: str) -> SandboxStats:
        if self.destroy_error is not None:
            raise self.destroy_error
        self.running.pop(session_id, None)
        await self._lose_runs(session_id, Reason(code="sandbox-destroyed", sentence="it was destroyed"))
        return SandboxStats(cpu_s=0.5, mem_bytes=1 << 20, mem_peak_bytes=2 << 20)

    async def sandboxes(self) -> list[SandboxInfo]:
        return list(self.running.values())

    async def ended(self) -> AsyncIterator[SandboxEnded]:
        while True:
            yield await self._ended.get()

    async def lost(self) -> list[SandboxEnded]:
        return list(self.found_lost)

    async def stats(self, session_id: str) -> SandboxStats:
        self._check(session_id)
        return SandboxStats()

    async def start(self, session_id: str, run: RunSpec) -> RunSummary:
        self._check(session_id)
        if self.start_error is not None:
            raise self.start_error
        runs = self._runs.setdefault(session_id, {})
        if run.run_id in runs:
            return runs[run.run_id]
        self.started.append((session_id, run))
        runs[run.run_id] = RunSummary(run_id=run.run_id, state=RunState.RUNNING, accepted_at=time.time())
        async with self._changed:
            self._changed.notify_all()
        if run.run_id in self.script:
            await self.finish(session_id, run.run_id, self.script[run.run_id])
        return msgspec.structs.replace(runs[run.run_id], created=True)

    async def until_started(self, run_id: str) -> RunSpec:
        """Wait until a run of this id was begun."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: any(run.run_id == run_id for _, run in self.started))
        return next(run for _, run in self.started if run.run_id == run_id)

    async def feed(self, session_id: str, run_id: str, *, prompt: int | None, text: str | None) -> None:
        raise self._no_runs(session_id)

    async def interrupt(
        self, session_id: str, run_id: str | None = None, *, grace_s: float | None = None
    ) -> InterruptOutcome:
        self._check(session_id)
        return InterruptOutcome.IDLE

    async def complete(self, session_id: str, text: str) -> list[str]:
        raise self._no_runs(session_id)

    async def read(
        self, session_id: str, run_id: str, *, after: int, max_bytes: int = 1 << 20, wait_s: float = 0.0
    ) -> Page:
        runs = self._runs.get(session_id, {})
        if run_id not in runs:
            raise RunNotFound(f"there is no run {run_id!r} in this session")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: runs[run_id].state is RunState.ENDED)
        return Page(events=[], run=runs[run_id])

    async def runs(self, session_id: str) -> list[RunSummary]:
        return list(self._runs.get(session_id, {}).values())

    async def finished(self) -> AsyncIterator[tuple[str, RunSummary]]:
        while True:
            yield await self.finished_runs.get()

    async def cursor(self, session_id: str, run_id: str) -> int:
        raise self._no_runs(session_id)

    async def move_cursor(self, session_id: str, run_id: str, seq: int) -> None:
        raise self._no_runs(session_id)

    def files(self, session_id: str) -> SessionFiles:
        self._check(session_id)
        return FakeFiles(self.homes.setdefault(session_id, {}))

    async def _lose_runs(self, session_id: str, reason: Reason) -> None:
        for run in await self.runs(session_id):
            if run.state is not RunState.ENDED:
                end = RunEnd(status=RunStatus.SANDBOX_LOST, exit_code=130, reason=reason)
                await self.finish(session_id, run.run_id, end)

    def _check(self, session_id: str) -> None:
        if session_id not in self.running:
            raise SessionNotFound(f"this node has no session {session_id}")

    def _no_runs(self, session_id: str) -> RoostError:
        self._check(session_id)
        return SessionNotRunning("a fake sandbox runs nothing")


class FakeFiles(SessionFiles):
    """Files that are written and read as a whole; a fake sandbox has nothing else."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    async def write(self, path: str, content: bytes) -> None:
        self._files[path] = content

    async def read(self, path: str, *, max_bytes: int) -> bytes:
        if path not in self._files:
            raise FileNotFoundInSession(f"there is no file {path}")
        return self._files[path][:max_bytes]

    async def list(self, path: str = ".") -> list[FileInfo]:
        raise _NO_FOLDERS

    async def info(self, path: str) -> FileInfo:
        raise _NO_FOLDERS

    def open(self, path: str) -> AbstractAsyncContextManager[OpenFile]:
        raise _NO_FOLDERS

    async def store(self, path: str, content: AsyncIterator[bytes]) -> bool:
        raise _NO_FOLDERS

    async def remove(self, path: str) -> None:
        raise _NO_FOLDERS

    def tar(self, path: str) -> AsyncIterator[bytes]:
        raise _NO_FOLDERS

    async def archive(self, path: str, *, max_bytes: int) -> bytes:
        raise _NO_FOLDERS


_NO_FOLDERS = AgentError("a fake sandbox has no folders")


class FakeEngine(AccountingEngine):
    """Nodes of given capacity, each with a `FakeAgent`."""

    def __init__(self, **nodes: dict[str, float]) -> None:
        capacity = nodes or {"fake": {"cpu": 4.0, "mem": float(4 << 30)}}
        self.agents = {name: FakeAgent() for name in capacity}
        super().__init__(capacity)

    async def open(self, config: EngineConfig) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def agent(self, node_id: str) -> FakeAgent:
        if node_id not in self.agents:
            raise NotFound(f"there is no node {node_id}")
        return self.agents[node_id]
