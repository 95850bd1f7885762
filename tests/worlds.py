"""A control plane without HTTP: a real store, ledger and scheduler over nodes that are not there."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.server.auth.secrets import SecretBox
from roost.server.domain.sessions import Session, SessionSpec
from roost.server.events.memory import MemoryBus
from roost.server.scheduler.ledger import Ledger, topic_of
from roost.server.scheduler.lives import Lives
from roost.server.scheduler.loop import Scheduler
from roost.server.services.accounts import DEFAULT, ensure_admin
from roost.server.store import accounts
from roost.server.store.sql import SqlStore
from roost.testing.engine import FakeAgent, FakeEngine
from roost.wire.ids import new_session_id
from roost.wire.reasons import Reason
from roost.wire.sandboxes import Interpreter, Isolation, Rung, SandboxInfo, SandboxState
from roost.wire.sessions import SessionState as S

PYTHON = Interpreter(language="python", version="3.11", path="/usr/bin/python3.11")
ASKED = Reason(code="user-requested", sentence="its owner asked for its end")


@dataclass
class World:
    """A control plane without HTTP."""

    store: SqlStore
    bus: MemoryBus
    ledger: Ledger
    engine: FakeEngine
    lives: Lives
    scheduler: Scheduler
    access_key: str
    group_id: str

    @property
    def agent(self) -> FakeAgent:
        return self.engine.agents["fake"]

    def a_session(self, name: str = "main", cpu: float = 1.0, state: S = S.PENDING, **spec: Any) -> Session:
        return Session(
            id=new_session_id(),
            access_key=self.access_key,
            group_id=self.group_id,
            name=name,
            image="python:3.11",
            state=state,
            node_id=None if state is S.PENDING else "fake",
            spec=SessionSpec(interpreter=PYTHON, slots={"cpu": cpu, "mem": 1024.0}, **spec),
            created_at=time.time(),
        )

    async def create(self, name: str = "main", cpu: float = 1.0, **spec: Any) -> Session:
        session = self.a_session(name, cpu, **spec)
        await self.ledger.create(session)
        return session

    async def written(self, name: str, state: S, **spec: Any) -> Session:
        """A session that an earlier server left in this state."""
        session = self.a_session(name, state=state, **spec)
        await self.ledger.create(session)
        return session

    async def until(self, session: Session, is_so: Callable[[Session], bool]) -> Session:
        async with self.bus.subscribe(topic_of(session.id)) as changes:
            while not is_so(now := await self.ledger.get(session.id)):
                assert await changes.wait(10), f"it stays {now.state}: {now.reason}"
            return now

    async def until_state(self, session: Session, state: S) -> Session:
        return await self.until(session, lambda now: now.state is state)


@contextlib.asynccontextmanager
async def a_world(folder: Path, engine: FakeEngine | None = None) -> AsyncIterator[World]:
    store, bus, engine = SqlStore(folder / "roost.db"), MemoryBus(), engine or FakeEngine()
    await store.open()
    admin = await ensure_admin(store, SecretBox.of_file(folder / "secrets.key"), None)
    group_id = await store.read(lambda c: accounts.group_id(c, DEFAULT, DEFAULT))
    assert group_id is not None
    ledger = Ledger(store, bus)
    lives = Lives(ledger, engine)
    scheduler = Scheduler(ledger, engine, bus, lives)
    try:
        yield World(store, bus, ledger, engine, lives, scheduler, admin.access_key, group_id)
    finally:
        await scheduler.aclose()
        await lives.aclose()
        await store.aclose()


async def codes(world: World, session: Session) -> list[str]:
    return [one.code for one in await world.ledger.history(session.id)]


def a_sandbox(session_id: str, state: SandboxState = SandboxState.RUNNING) -> SandboxInfo:
    return SandboxInfo(
        session_id=session_id,
        state=state,
        runtime="fake",
        isolation=Isolation(rung=Rung.PROCESS),
        launched_at=0.0,
    )
