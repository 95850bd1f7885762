"""Writes down what runs came to, behind them: no run waits for the database."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from roost.engines.base import Engine
from roost.server.scheduler.ledger import Ledger
from roost.server.store import runs as rows
from roost.server.store.base import Store
from roost.wire.errors import SessionNotFound
from roost.wire.runs import RunState, RunSummary
from roost.wire.sessions import SessionState as S

BATCH_S = 0.5
"""How long the first of a batch waits for company."""
BATCH = 500

log = structlog.get_logger(__name__)


class RunRecorder:
    """Hears of runs that end, and writes a row for each; what a crash kept from it, it looks up when it opens."""

    def __init__(
        self, store: Store, engine: Engine, ledger: Ledger, on_ended: Callable[[str, RunSummary], None]
    ) -> None:
        """`on_ended` is told of each, perhaps again after a crash."""
        self._on_ended = on_ended
        self._store = store
        self._engine = engine
        self._ledger = ledger
        self._ended: asyncio.Queue[rows.Ended] = asyncio.Queue()
        self._tasks: list[asyncio.Task[Any]] = []

    async def open(self) -> None:
        """Listen to every node, and look through the logs of sessions that were alive. Call it before the scheduler."""
        for node in await self._engine.nodes():
            self._spawn(self._listen(node.node_id), f"runs-of-{node.node_id}")
        for session in await self._ledger.in_states(S.RUNNING, S.TERMINATING, S.ERROR):
            if session.node_id is not None:
                with contextlib.suppress(SessionNotFound):  # it has run nothing
                    agent = await self._engine.agent(session.node_id)
                    for run in await agent.runs(session.id):
                        if run.state is RunState.ENDED:
                            self._hear((session.id, run))
        self._spawn(self._write(), "run-recorder")

    async def aclose(self) -> None:
        """Write what was heard, and stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while batch := self._take():
            await self._record(batch)

    async def _listen(self, node_id: str) -> None:
        agent = await self._engine.agent(node_id)
        async for ended in agent.finished():
            self._hear(ended)

    def _hear(self, ended: rows.Ended) -> None:
        self._ended.put_nowait(ended)
        self._on_ended(*ended)

    async def _write(self) -> None:
        while True:
            first = await self._ended.get()
            try:
                await asyncio.sleep(BATCH_S)
            finally:
                self._ended.put_nowait(first)
            await asyncio.shield(self._record(self._take()))

    def _take(self) -> list[rows.Ended]:
        return [self._ended.get_nowait() for _ in range(min(BATCH, self._ended.qsize()))]

    async def _record(self, batch: list[rows.Ended]) -> None:
        try:
            await self._store.write(lambda c: rows.record_all(c, batch))
        except Exception:
            # The logs are the record; the next start looks them through.
            log.exception("runs.not_recorded", count=len(batch))

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))
