"""The run logs of one node's sessions: which are open, and when the old ones go."""

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from roost.agent.journal import CAP_BYTES
from roost.agent.log_writer import LogWriter
from roost.agent.session_runs import SessionRuns, until_written
from roost.agent.sweep import remove_tree
from roost.wire.errors import AgentError, SessionNotFound
from roost.wire.reasons import Reason
from roost.wire.runs import RunSummary

KEEP_S = 30 * 86400.0
"""How long the logs of sessions that have ended are kept, unless the operator says otherwise."""
SWEEP_EVERY_S = 3600.0
GOING = ".going-"
"""Begins the name of a log that is being removed."""
IDLE_LOGS = 64
"""As many logs of sessions that nobody uses stay open."""

log = structlog.get_logger(__name__)


class RunLogs:
    """The logs below one folder. They outlive their sandboxes, and are removed some time after."""

    def __init__(
        self,
        folder: Path,
        on_ended: Callable[[str, RunSummary], None],
        has_sandbox: Callable[[str], bool],
        *,
        cap_bytes: int = CAP_BYTES,
        keep_s: float = KEEP_S,
    ) -> None:
        """`on_ended` is told of each run that ends, and of its session; the log of one that `has_sandbox` stays."""
        self._folder = folder
        self._on_ended = on_ended
        self._has_sandbox = has_sandbox
        self._cap_bytes = cap_bytes
        self._keep_s = keep_s
        self._writer: LogWriter | None = None
        self._runs: dict[str, SessionRuns] = {}
        """the logs that are open, the one asked for last at the end"""
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def open(self) -> None:
        """Make the folder, and begin to write."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._writer = LogWriter()

    def begin_sweeping(self) -> None:
        """Remove old logs from now on."""
        self._spawn(self._sweep())

    async def aclose(self) -> None:
        """Sync and close every log."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._opening.values(), return_exceptions=True)
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)
        for runs in self._runs.values():
            runs.close()
        self._runs.clear()

    @property
    def open_names(self) -> list[str]:
        """The sessions whose logs are open, the one asked for last at the end."""
        return list(self._runs)

    def has(self, session_id: str) -> bool:
        """Whether there is a log of this session."""
        return (self._folder / session_id).exists()

    async def of(self, session_id: str, *, make: bool = False, lost: Reason | None = None) -> SessionRuns:
        """The runs of a session; if its sandbox is gone they are `lost`, also those that a full disk kept open.

        Use them at once: after the caller's next await they may be closed.

        Raises:
            SessionNotFound: there is no log, and none is to be made.
        """
        if lost is not None and session_id in self._runs:
            await self._lose(session_id, self._runs[session_id], lost)
        while session_id not in self._runs:
            if not make and not self.has(session_id):
                raise SessionNotFound(f"this node has no session {session_id}")
            if session_id not in self._opening:
                lost = lost or Reason(code="node-lost", sentence="the sandbox is gone")
                opening = asyncio.create_task(self._open(session_id, None if make else lost))
                self._opening[session_id] = opening
                opening.add_done_callback(lambda _: self._opening.pop(session_id))
            # Not cancelled with one caller: others may wait for it too.
            await asyncio.shield(self._opening[session_id])
        self._runs[session_id] = self._runs.pop(session_id)
        return self._runs[session_id]

    async def _open(self, session_id: str, lost: Reason | None) -> None:
        assert self._writer is not None
        on_ended = functools.partial(self._on_ended, session_id)
        folder = self._folder / session_id
        runs = await asyncio.to_thread(SessionRuns, folder, self._writer, on_ended, self._cap_bytes)
        if lost is not None:
            await self._lose(session_id, runs, lost)
        self._runs[session_id] = runs
        idle = [name for name, runs in self._runs.items() if runs.is_idle and name != session_id]
        for closing in [self._runs.pop(name) for name in idle[: max(0, len(idle) + 1 - IDLE_LOGS)]]:
            await asyncio.to_thread(closing.close)

    async def _lose(self, session_id: str, runs: SessionRuns, reason: Reason) -> None:
        try:
            await runs.lose(reason)
        except AgentError:
            self._spawn(until_written(session_id, functools.partial(runs.lose, reason), asyncio.Event()))

    async def _sweep(self) -> None:
        """Remove the logs of sessions that ended long ago, now and again."""
        while True:
            for folder in await asyncio.to_thread(lambda: sorted(self._folder.iterdir())):
                try:
                    await self._sweep_log(folder)
                except OSError as error:
                    log.warning("log.not_removed", session_id=folder.name, error=str(error))
            await asyncio.sleep(min(SWEEP_EVERY_S, self._keep_s))

    async def _sweep_log(self, folder: Path) -> None:
        session_id = folder.name
        if not session_id.startswith(GOING):
            runs = self._runs.get(session_id)
            is_in_use = session_id in self._opening or (runs is not None and not runs.is_idle)
            if is_in_use or self._has_sandbox(session_id):
                return
            if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) < self._keep_s:
                return
            if runs is not None:
                self._runs.pop(session_id).close()
            # From here on nobody finds it, and who comes after a crash sees that it goes.
            folder = folder.rename(folder.with_name(GOING + session_id))
            log.info("log.expired", session_id=session_id)
        await asyncio.to_thread(remove_tree, folder)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
