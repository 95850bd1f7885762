"""The agent in this process: the `Agent` seam over the sandboxes, run logs and environments of one node."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path

import msgspec

from roost.agent.environments import EnvironmentStore
from roost.agent.files import HomeFiles
from roost.agent.install import install_runner
from roost.agent.interpreters import remembering_interpreters
from roost.agent.journal import CAP_BYTES
from roost.agent.launcher import Launcher
from roost.agent.layout import check_owner, run_dir
from roost.agent.recovery import recover
from roost.agent.run_logs import KEEP_S, RunLogs
from roost.agent.sandboxes import Sandboxes
from roost.runtimes.base import Runtime
from roost.runtimes.base import runtimes as installed_runtimes
from roost.wire.agent import Agent, SessionFiles
from roost.wire.environments import Environment, EnvironmentRequest
from roost.wire.errors import AgentError, Conflict
from roost.wire.runs import InterruptOutcome, Page, RunSpec, RunSummary
from roost.wire.sandboxes import (
    Interpreter,
    RuntimeProbe,
    SandboxEnded,
    SandboxInfo,
    SandboxSpec,
    SandboxStats,
)


class LocalAgent(Agent):
    """The agent of this machine for one data folder; `open` recovers what an earlier one left."""

    def __init__(
        self,
        data_dir: Path,
        runtimes: Mapping[str, Runtime] | None = None,
        *,
        log_cap_bytes: int = CAP_BYTES,
        log_keep_s: float = KEEP_S,
    ) -> None:
        self._data = data_dir
        self._run_dir = run_dir(data_dir)
        self._runtimes = runtimes if runtimes is not None else installed_runtimes()
        self._environments = EnvironmentStore(self._images)
        self._logs = RunLogs(
            data_dir / "logs",
            self._note_finished,
            lambda session_id: (self._sandboxes.folder / session_id).exists(),
            cap_bytes=log_cap_bytes,
            keep_s=log_keep_s,
        )
        self._sandboxes = Sandboxes(data_dir, self._run_dir, self._logs)
        self._launcher = Launcher(data_dir, self._sandboxes, self._runtimes, self._environments)
        self._finished: asyncio.Queue[tuple[str, RunSummary]] = asyncio.Queue()
        self._lost: list[SandboxEnded] = []

    async def open(self) -> None:
        """Start or find the keeper, and take over every sandbox that lives; the others are swept."""
        for folder, mode in (
            (self._data, 0o711),
            (self._sandboxes.folder, 0o711),
            (self._images, 0o711),
            (self._run_dir, 0o711),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            if folder != self._data or os.access(folder, os.W_OK):
                folder.chmod(mode)
        check_owner(self._run_dir)
        runner = await asyncio.to_thread(install_runner, self._data)
        self._logs.open()
        await self._environments.open()
        await self._sandboxes.open(runner)
        self._lost += await recover(self._sandboxes)
        self._logs.begin_sweeping()

    async def aclose(self) -> None:
        """Let go of everything; sandboxes and runs go on. A keeper that has nothing to keep ends."""
        await self._sandboxes.aclose()
        await self._logs.aclose()

    # Sandboxes

    async def interpreters(self) -> list[Interpreter]:
        return await asyncio.to_thread(remembering_interpreters, self._images / "programs.json")

    async def build(self, request: EnvironmentRequest) -> AsyncGenerator[str | Environment, None]:
        async with contextlib.aclosing(self._environments.build(request)) as steps:
            async for step in steps:
                yield step

    async def environments(self) -> list[str]:
        return await asyncio.to_thread(self._environments.digests)

    async def remove_environment(self, digest: str) -> None:
        for folder in self._sandboxes.folder.iterdir():
            with contextlib.suppress(OSError, msgspec.DecodeError):  # it is only being made, or on its way out
                if self._sandboxes.load(folder.name).spec.environment == digest:
                    raise Conflict(f"session {folder.name} uses the environment {digest[:12]}")
        await self._environments.remove(digest)

    async def probe(self) -> list[RuntimeProbe]:
        return [runtime.probe() for runtime in self._runtimes.values()]

    async def launch(self, spec: SandboxSpec) -> SandboxInfo:
        async with self._sandboxes.changing(spec.session_id):
            if spec.session_id in self._sandboxes.live:
                return self._sandboxes.load(spec.session_id).info()
            return await self._launcher.launch(spec)

    async def restart(self, session_id: str) -> SandboxInfo:
        async with self._sandboxes.changing(session_id):
            try:
                record = self._sandboxes.load(session_id)
            except FileNotFoundError:
                self._sandboxes.get(session_id)
                raise AgentError(f"the sandbox of session {session_id} has no record") from None
            return await self._launcher.restart(record)

    async def destroy(self, session_id: str) -> SandboxStats:
        return await self._sandboxes.destroy(session_id)

    async def sandboxes(self) -> list[SandboxInfo]:
        return self._sandboxes.infos()

    async def ended(self) -> AsyncIterator[SandboxEnded]:
        while True:
            yield await self._sandboxes.ended.get()

    async def lost(self) -> list[SandboxEnded]:
        return list(self._lost)

    async def stats(self, session_id: str) -> SandboxStats:
        return self._sandboxes.stats(session_id)

    # Runs

    async def start(self, session_id: str, run: RunSpec) -> RunSummary:
        return await self._sandboxes.get(session_id).start(run)

    async def feed(self, session_id: str, run_id: str, *, prompt: int | None, text: str | None) -> None:
        await self._sandboxes.get(session_id).feed(run_id, prompt, text)

    async def complete(self, session_id: str, text: str) -> list[str]:
        return await self._sandboxes.get(session_id).complete(text)

    async def interrupt(
        self, session_id: str, run_id: str | None = None, *, grace_s: float | None = None
    ) -> InterruptOutcome:
        return await self._sandboxes.get(session_id).interrupt(run_id, grace_s)

    async def read(
        self, session_id: str, run_id: str, *, after: int, max_bytes: int = 1 << 20, wait_s: float = 0.0
    ) -> Page:
        runs = await self._logs.of(session_id)
        return await runs.read(run_id, after=after, max_bytes=max_bytes, wait_s=wait_s)

    async def runs(self, session_id: str) -> list[RunSummary]:
        return [run.summary() for run in (await self._logs.of(session_id)).all()]

    async def finished(self) -> AsyncIterator[tuple[str, RunSummary]]:
        while True:
            yield await self._finished.get()

    def _note_finished(self, session_id: str, run: RunSummary) -> None:
        self._finished.put_nowait((session_id, run))

    async def cursor(self, session_id: str, run_id: str) -> int:
        return (await self._logs.of(session_id)).run(run_id).cursor

    async def move_cursor(self, session_id: str, run_id: str, seq: int) -> None:
        runs = await self._logs.of(session_id)
        await runs.move_cursor(runs.run(run_id), seq)

    def files(self, session_id: str) -> SessionFiles:
        self._sandboxes.get(session_id)
        return HomeFiles(self._sandboxes.folder / session_id / "home", self._sandboxes.load(session_id).uid)

    @property
    def _images(self) -> Path:
        return self._data / "images"
