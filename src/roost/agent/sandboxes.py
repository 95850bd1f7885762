"""The sandboxes of one node: what is written down of them, which of them live, and how they end."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
import structlog

from roost.agent.run_logs import RunLogs
from roost.agent.sandbox import LiveSandbox
from roost.agent.sandbox_file import SandboxFile, how_it_ended, load, save
from roost.agent.sweep import kill_all, remove_group, remove_tree
from roost.runtimes import cgroups
from roost.runtimes.keeper import KeeperClient
from roost.wire.errors import AgentError, SessionNotFound, SessionNotRunning
from roost.wire.reasons import Reason
from roost.wire.sandboxes import SandboxEnded, SandboxInfo, SandboxSpec, SandboxState, SandboxStats

TELLING_S = 1.0
"""How long a keeper may take to tell of an end that the agent has seen itself."""

RESTARTED = Reason(
    code="session-restarted",
    sentence="the session was restarted while this ran; its variables are lost, its files are kept",
)
"""Why the runs of a sandbox ended that gave way to the next in its home."""

log = structlog.get_logger(__name__)


class Sandboxes:
    """The sandboxes below one folder, and the keeper that is the parent of them all."""

    def __init__(self, data_dir: Path, run_dir: Path, logs: RunLogs) -> None:
        self.folder = data_dir / "sandboxes"
        self.run_dir = run_dir
        self.logs = logs
        self.runner = Path()
        """The copy of the runner that keeper and sandboxes execute."""
        self.keeper: KeeperClient | None = None
        self.live: dict[str, LiveSandbox] = {}
        self.ended: asyncio.Queue[SandboxEnded] = asyncio.Queue()
        """Those that went away by themselves."""
        self._keeper_log = data_dir / "keeper.log"
        self._hierarchies = cgroups.Hierarchies()
        self._changing: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: dict[str, int] = {}
        """pidfds of the sandboxes' first processes, since a keeper tells of the ends of its own children only"""

    async def open(self, runner: Path) -> None:
        """Start or find the keeper."""
        self.runner = runner
        self._hierarchies = cgroups.here()
        self.keeper = KeeperClient(self.run_dir, self.runner, self._keeper_log, self._on_exit)
        await self.keeper.open()

    async def aclose(self) -> None:
        """Let go of everything; sandboxes and runs go on. A keeper that has nothing to keep ends."""
        is_idle = not self.live
        for session_id, sandbox in list(self.live.items()):
            self._unwatch(session_id)
            await sandbox.aclose()
        self.live.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.keeper is not None:
            if is_idle and self.keeper.is_connected:
                try:
                    await self.keeper.retire()
                except AgentError as error:
                    log.warning("keeper.not_retired", error=error.message)
            await self.keeper.aclose()

    def changing(self, session_id: str) -> asyncio.Lock:
        """Held by whoever launches, restarts or ends a sandbox."""
        return self._changing.setdefault(session_id, asyncio.Lock())

    # What there is

    def get(self, session_id: str) -> LiveSandbox:
        """A sandbox that lives.

        Raises:
            SessionNotRunning: it is gone, and its log is there.
            SessionNotFound: this node knows nothing of it.
        """
        sandbox = self.live.get(session_id)
        if sandbox is not None:
            return sandbox
        if self.logs.has(session_id):
            raise SessionNotRunning(f"the sandbox of session {session_id} is gone")
        raise SessionNotFound(f"this node has no session {session_id}")

    def infos(self) -> list[SandboxInfo]:
        """Those that live, and those of which only the home is left, for a restart."""
        waiting = [path.name for path in self.folder.iterdir() if path.name not in self.live]
        kept = [info for session_id in waiting if (info := self._kept(session_id)) is not None]
        return [self.load(session_id).info() for session_id in self.live] + kept

    def _kept(self, session_id: str) -> SandboxInfo | None:
        """A sandbox of which only the home is left, for a restart."""
        try:
            record = self.load(session_id)
        except (OSError, msgspec.DecodeError):
            return None
        return record.info() if record.state is SandboxState.RESTARTING else None

    def load(self, session_id: str) -> SandboxFile:
        """What is written down of it (see `sandbox_file.load`)."""
        return load(self.folder / session_id)

    def save(self, record: SandboxFile) -> None:
        """Write it down."""
        save(self.folder / record.spec.session_id, record)

    def group(self, session_id: str, spec: SandboxSpec | None = None) -> cgroups.SandboxGroup | None:
        """Its control group, made if a spec is given; None where this host gives none that limits all that we limit."""
        if not self._hierarchies.controllers >= {"cpu", "memory", "pids"}:
            return None
        group = cgroups.SandboxGroup(self._hierarchies, f"roost-{self.run_dir.name}-{session_id}")
        if spec is not None:
            group.create(spec.limits)
        return group

    def stats(self, session_id: str) -> SandboxStats:
        """What it has used, where its group counts that.

        Raises:
            SessionNotRunning, SessionNotFound: as `get`.
        """
        self.get(session_id)
        group = self.group(session_id)
        return group.stats() if group is not None else SandboxStats()

    # Those that live

    async def connect(self, record: SandboxFile, group: cgroups.SandboxGroup | None) -> None:
        """Connect to the runner of a sandbox whose first process lives; from then on it lives for us too."""
        session_id = record.spec.session_id
        runs = await self.logs.of(session_id, make=True)
        sandbox = LiveSandbox(session_id, runs, group, record.spec.limits.mem_bytes, self._on_breach)
        try:
            await sandbox.connect(self.run_dir / record.socket, record.generation, record.uid, record.init_pid)
        except BaseException:
            await sandbox.aclose()
            raise
        self.live[session_id] = sandbox
        self._watch(session_id, record.init_pid)

    def _watch(self, session_id: str, init_pid: int) -> None:
        """See the sandbox's end also when its keeper is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._watched[session_id] = descriptor = os.pidfd_open(init_pid)
            asyncio.get_running_loop().add_reader(descriptor, self._on_gone, session_id)

    def _unwatch(self, session_id: str) -> None:
        descriptor = self._watched.pop(session_id, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _on_gone(self, session_id: str) -> None:
        """The first process has ended."""
        self._unwatch(session_id)
        if (sandbox := self.live.get(session_id)) is not None:
            self._spawn(self._lose_untold(session_id, sandbox))

    async def _lose_untold(self, session_id: str, sandbox: LiveSandbox) -> None:
        """The keeper whose child it was tells with which status it ended; after another one's death nobody knows."""
        if self.keeper is not None and self.keeper.is_connected:
            await asyncio.sleep(TELLING_S)
        sentence = "the sandbox's first process ended; its status is unknown, since its keeper was gone"
        await self._lose(session_id, sandbox, Reason(code="self-terminated", sentence=sentence))

    # Ends

    async def destroy(self, session_id: str) -> SandboxStats:
        """End a sandbox, and its open runs with it; see `Agent.destroy`."""
        async with self.changing(session_id):
            stats = SandboxStats()
            if (sandbox := self.live.get(session_id)) is not None:
                stats = self.stats(session_id)
                # Before the kill: how the runner saw its kernel die of it is not how the run ended.
                await sandbox.aclose()
            reason = Reason(code="sandbox-destroyed", sentence="the session was ended while this ran")
            await self.end(session_id, reason)
        self._changing.pop(session_id, None)
        return stats

    async def _lose(
        self, session_id: str, sandbox: LiveSandbox, reason: Reason, message: dict[str, Any] | None = None
    ) -> None:
        """End a sandbox that went away by itself, unless somebody was quicker."""
        async with self.changing(session_id):
            if self.live.get(session_id) is not sandbox:
                return
            await self.end(session_id, reason)
        await self.ended.put(sandbox_ended(session_id, reason, message))

    async def end(self, session_id: str, reason: Reason | None = None) -> None:
        """Leave nothing of a sandbox but its log."""
        await self.stop(session_id)
        if reason is not None:
            with contextlib.suppress(SessionNotFound):
                await self.logs.of(session_id, lost=reason)
        # The folder goes last: whoever comes after a crash finds by it what there is left to do.
        await asyncio.to_thread(remove_tree, self.folder / session_id)

    async def stop(self, session_id: str) -> None:
        """Leave nothing of a sandbox but its log and its folder."""
        sandbox = self.live.pop(session_id, None)
        self._unwatch(session_id)
        folder = self.folder / session_id
        group = self.group(session_id)
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            record = self.load(session_id)
            await kill_all(record.pids(), group, folder)
            (self.run_dir / record.socket).unlink(missing_ok=True)
        if group is not None:
            await kill_all({}, group, folder)
            await remove_group(group)
        if sandbox is not None:
            await sandbox.aclose()

    def _on_exit(self, message: dict[str, Any]) -> None:
        """The keeper says that a child of its ended."""
        session_id = Path(str(message.get("dir", ""))).name
        sandbox = self.live.get(session_id)
        # An older child of the same session was ended by a restart.
        if sandbox is not None and message.get("pid") == self.load(session_id).pid:
            reason = Reason(code="self-terminated", sentence=how_it_ended(message))
            self._spawn(self._lose(session_id, sandbox, reason, message))

    def _on_breach(self, session_id: str, error: str) -> None:
        if (sandbox := self.live.get(session_id)) is not None:
            reason = Reason(code="protocol-error", sentence=f"the sandbox broke the runner's protocol: {error}")
            self._spawn(self._lose(session_id, sandbox, reason))

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def sandbox_ended(session_id: str, reason: Reason, message: dict[str, Any] | None) -> SandboxEnded:
    """What the control plane hears of an end; `message` is what the keeper told of it, if it did."""
    told = message or {}
    return SandboxEnded(
        session_id=session_id, reason=reason, exit_code=told.get("exit_code"), signal=told.get("signal")
    )
