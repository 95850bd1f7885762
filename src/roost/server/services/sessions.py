"""Creating, finding, explaining and ending sessions."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from roost.server.auth.base import Caller
from roost.server.domain.dependencies import MAX_GRAPH_DEPTH, MAX_GRAPH_NODES, DependencyNode, dependency_tree
from roost.server.domain.resources import complete_slots
from roost.server.domain.sessions import BEING_PREPARED, NEEDS_FORCE, Happening, Session, SessionSpec
from roost.server.domain.times import parse_duration, parse_start
from roost.server.events.base import EventBus, Subscription
from roost.server.scheduler.ledger import Ledger, topic_of
from roost.server.scheduler.lives import Lives
from roost.server.services.accounts import DEFAULT
from roost.server.services.images import Images
from roost.server.services.webhooks import check_callback
from roost.server.store import accounts, idempotency
from roost.server.store.base import Store
from roost.server.store.idempotency import KeyTaken, Once
from roost.wire.errors import (
    AmbiguousSession,
    Conflict,
    Forbidden,
    InvalidParameters,
    SessionAlreadyExists,
    SessionNotFound,
)
from roost.wire.ids import new_session_id
from roost.wire.reasons import Reason
from roost.wire.sandboxes import Rung, SandboxStats
from roost.wire.sessions import SessionState, SessionType


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a session."""

    name: str
    image: str
    architecture: str | None = None
    resources: Mapping[str, Any] = {}
    """Amounts as written, by slot."""
    resource_opts: Mapping[str, Any] = {}
    """`shmem`; and ours: `runtime`, the runtime to take, `min_rung`, the least isolation to accept, and `exec_timeout`,
    how long each run may take."""
    type: SessionType = SessionType.INTERACTIVE
    startup_command: str | None = None
    starts_at: str | None = None
    """As written: an instant, or a duration from now."""
    bootstrap_script: str | None = None
    dependencies: tuple[str, ...] = ()
    """Ids or names of the owner's sessions, ended ones too."""
    callback_url: str | None = None
    environ: dict[str, str] = {}
    tag: str | None = None
    node_id: str | None = None
    """The node to place it on, where an administrator has chosen one."""
    domain: str = DEFAULT
    group: str = DEFAULT
    reuse: bool = True
    enqueue_only: bool = False
    max_wait_s: float | None = None
    """How long to wait for the session to run; None waits without limit."""
    once: Once | None = None


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a `Wanted`."""

    session: Session
    created: bool
    """Whether it was made; False where it was there."""
    timed_out: bool = False
    """Whether the wait ended before the session ran; it goes on being prepared."""


class Sessions:
    """What can be done with sessions as a whole."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        lives: Lives,
        images: Images,
        bus: EventBus,
        webhooks_allowed: bool | frozenset[str],
    ) -> None:
        self._store = store
        self._groups: dict[tuple[str, str], str] = {}
        """Ids of groups that were found, by domain and name; groups keep theirs"""
        self._ledger = ledger
        self._lives = lives
        self._images = images
        self._bus = bus
        self._webhooks_allowed = webhooks_allowed

    async def create(self, owner: Caller, wanted: Wanted) -> Created:
        """Make a session, or take the live one of that name, and wait until it runs.

        A request that is to be done once is answered with the session of the first, also after that has ended.

        Raises:
            Conflict: another request was sent with this key.
            InvalidParameters, ImageNotFound: the request cannot be met by anybody.
            SessionAlreadyExists: the name is taken by a session of another image, or reuse was refused.
        """
        if (done := await self._done(owner, wanted)) is not None:
            return done
        try:
            return await self._create(owner, wanted)
        except (SessionAlreadyExists, KeyTaken) as error:  # somebody was quicker, perhaps with this very request
            if (done := await self._done(owner, wanted)) is not None:
                return done
            if isinstance(error, SessionAlreadyExists):
                raise
            raise Conflict("this Idempotency-Key was used and forgotten meanwhile", hint="send it again") from error

    async def _done(self, owner: Caller, wanted: Wanted) -> Created | None:
        """What was answered to this request before."""
        if (once := wanted.once) is None:
            return None
        done = await self._store.read(lambda c: idempotency.find(c, owner.access_key, once.key, time.time()))
        if done is None:
            return None
        if done.fingerprint != once.fingerprint:
            raise Conflict(f"Idempotency-Key {once.key!r} was sent with another request", hint="take a new key")
        return await self._wait(await self._ledger.get(done.session_id), wanted, created=done.created)

    async def _create(self, owner: Caller, wanted: Wanted) -> Created:
        image = self._images.find(wanted.image, wanted.architecture)
        existing = await self._ledger.find_live_name(owner.access_key, wanted.name)
        if existing is None:
            now = time.time()
            starts_at = _starts_at(wanted, now)
            dependencies = await self._dependencies(owner, wanted)
            if wanted.callback_url is not None:
                check_callback(wanted.callback_url, self._webhooks_allowed)
            slots = complete_slots(
                wanted.resources,
                minimum=image.minimum,
                maximum=image.maximum,
                default=image.default,
                shmem=wanted.resource_opts.get("shmem", image.shmem),
            )
            if wanted.node_id is not None and not await self._lives.has_node(wanted.node_id):
                raise InvalidParameters(f"there is no agent {wanted.node_id!r:.80}", hint="leave config.agentList out")
            session = Session(
                id=new_session_id(),
                access_key=owner.access_key,
                group_id=await self._group_id(owner, wanted),
                name=wanted.name,
                image=image.reference,
                state=SessionState.PENDING,
                spec=SessionSpec(
                    type=wanted.type,
                    startup_command=wanted.startup_command,
                    starts_at=starts_at,
                    architecture=image.architecture,
                    callback_url=wanted.callback_url,
                    bootstrap_script=wanted.bootstrap_script or None,
                    interpreter=image.interpreter,
                    environment=image.environment,
                    slots=slots,
                    named=frozenset(slot for slot, amount in wanted.resources.items() if amount),
                    environ=wanted.environ,
                    tag=wanted.tag,
                    resource_opts=dict(wanted.resource_opts),
                    runtime=_runtime(wanted.resource_opts),
                    min_rung=_rung(wanted.resource_opts),
                    exec_timeout_s=_exec_timeout(wanted.resource_opts),
                    node_id=wanted.node_id,
                ),
                created_at=now,
                status_changed=now,
            )
            try:
                return await self._enqueue(session, dependencies, wanted)
            except SessionAlreadyExists:  # somebody was quicker
                existing = await self._ledger.find_live_name(owner.access_key, wanted.name)
                if existing is None:
                    raise
        if existing.image != image.reference or not wanted.reuse:
            raise SessionAlreadyExists(
                f"a live session {wanted.name} exists (image {existing.image})",
                data={"existingSessionId": existing.id},
            )
        if (once := wanted.once) is not None:
            key, id_, now = owner.access_key, existing.id, time.time()
            await self._store.write(lambda c: idempotency.remember(c, key, once, id_, False, now))
        return await self._wait(existing, wanted, created=False)

    async def find(self, owner: Caller, reference: str, *, dead_too: bool = False) -> Session:
        """The session that a reference names (see `Ledger.find`)."""
        return await self._ledger.find(owner.access_key, reference, dead_too=dead_too)

    async def match(self, owner: Caller, beginning: str) -> list[Session]:
        """What a reference may be completed to, ended sessions too."""
        return await self._ledger.match(owner.access_key, beginning)

    async def rename(self, session: Session, name: str) -> None:
        """Give a running session another name.

        Raises:
            InvalidParameters: it does not run.
            SessionAlreadyExists: the name is taken.
        """
        if session.state is not SessionState.RUNNING:
            raise InvalidParameters(f"session {session.name} is {session.state}, only running ones are renamed")
        if name == session.name:
            return
        try:
            await self._ledger.rename(session, name)
        except SessionAlreadyExists as error:
            if (taken := await self._ledger.find_live_name(session.access_key, name)) is None:
                raise
            raise SessionAlreadyExists(error.message, data={"existingSessionId": taken.id}) from None

    async def history(self, session: Session) -> list[Happening]:
        """What happened to a session, oldest first."""
        return await self._ledger.history(session.id)

    async def restart(self, session: Session) -> None:
        """Give a running session a new sandbox with the same files (see `Lives.restart`)."""
        await self._lives.restart(session)

    async def destroy(self, session: Session, *, forced: bool = False) -> SandboxStats:
        """End a session; nothing of it is left but its log when this returns (see `Lives.end`)."""
        reason = Reason(code="user-requested", sentence="its owner asked for its end")
        if forced and session.state is not SessionState.PENDING:
            reason = Reason(code="force-terminated", sentence="its owner ended it by force")
        return await self._lives.end(session, reason, forced=forced)

    async def destroy_with_dependents(
        self, session: Session, *, forced: bool = False
    ) -> Sequence[tuple[Session, SandboxStats]]:
        """End a session after those that depend on it; each as it was, with its counters, itself first.

        Raises:
            Forbidden: one of them is being prepared, or is in error, and this is not forced; none has been ended.
        """
        all_of_them = [*await self._ledger.live_dependents(session.id), session]
        for one in all_of_them:
            if one.state in NEEDS_FORCE and not forced:
                raise Forbidden(f"session {one.name} is {one.state}", hint="wait, or force it with `forced`")
        return [(one, await self.destroy(one, forced=forced)) for one in all_of_them][::-1]

    async def dependency_graph(self, session: Session) -> DependencyNode:
        """What a session depends on, and what that depends on, down to those that depend on nothing.

        Raises:
            LimitExceeded: it is too large to be told in one answer.
        """
        known: dict[str, Sequence[Session]] = {}
        level = {session.id}
        for _ in range(MAX_GRAPH_DEPTH):
            found = await self._ledger.dependencies(sorted(level))
            known |= found
            level = {one.id for some in found.values() for one in some} - set(known)
            if len(known) > MAX_GRAPH_NODES or not level:
                break
        return dependency_tree(session, known)

    async def list(self, owner: Caller, states: list[SessionState]) -> list[Session]:
        """The owner's sessions in these states, newest first."""
        return await self._ledger.of_owner(owner.access_key, states)

    async def _group_id(self, owner: Caller, wanted: Wanted) -> str:
        if wanted.domain != owner.domain and owner.role != "superadmin":
            raise InvalidParameters(f"not your domain: {wanted.domain!r:.80}", hint=f"yours is {owner.domain}")
        key = (wanted.domain, wanted.group)
        found = self._groups.get(key) or await self._store.read(lambda c: accounts.group_id(c, *key))
        if found is None:
            raise InvalidParameters(
                f"there is no group {wanted.group!r:.80} in domain {wanted.domain!r:.80}",
                hint="leave both out for those that everybody has",
            )
        self._groups[key] = found
        return found

    async def _dependencies(self, owner: Caller, wanted: Wanted) -> Sequence[str]:
        found = {}
        for reference in wanted.dependencies:
            try:
                session = await self._ledger.find(owner.access_key, reference, dead_too=True)
            except (SessionNotFound, AmbiguousSession):
                session = None
            if session is None or (reference.lower() != session.id and reference != session.name):
                raise InvalidParameters(
                    f"there is no session {reference!r:.80} to depend on",
                    hint="name the full id, or the exact name",
                    data={"session_ref": reference},
                )
            found[session.id] = session
        return tuple(found)

    async def _enqueue(self, session: Session, dependencies: Sequence[str], wanted: Wanted) -> Created:
        if wanted.enqueue_only:
            await self._ledger.create(session, dependencies, wanted.once)
            return Created(session=session, created=True)
        # Heard from before it is written, so that no change is missed.
        async with self._bus.subscribe(topic_of(session.id)) as changes:
            await self._ledger.create(session, dependencies, wanted.once)
            return await self._await_running(session, wanted, changes, created=True)

    async def _wait(self, session: Session, wanted: Wanted, *, created: bool) -> Created:
        if wanted.enqueue_only or session.state not in BEING_PREPARED:
            return Created(session=session, created=created)
        async with self._bus.subscribe(topic_of(session.id)) as changes:
            return await self._await_running(await self._ledger.get(session.id), wanted, changes, created=created)

    async def _await_running(
        self, session: Session, wanted: Wanted, changes: Subscription, *, created: bool
    ) -> Created:
        try:
            async with asyncio.timeout(wanted.max_wait_s):
                while session.state in BEING_PREPARED:
                    await changes.wait()
                    session = await self._ledger.get(session.id)
        except TimeoutError:
            return Created(session=session, created=created, timed_out=True)
        return Created(session=session, created=created)


def _starts_at(wanted: Wanted, now: float) -> float | None:
    """When the session may start; what only batch sessions have, and what they must have, is checked here (§4.5)."""
    if wanted.type is SessionType.BATCH:
        if not (wanted.startup_command or "").strip():
            raise InvalidParameters(
                "a batch session needs a command", hint="name it in startupCommand, or ask for an interactive session"
            )
        return parse_start(wanted.starts_at, now) if wanted.starts_at is not None else None
    for name, value in (("starts_at", wanted.starts_at), ("startupCommand", wanted.startup_command)):
        if value:
            raise InvalidParameters(f"only a batch session has {name}", hint=f"leave {name} out, or say type=batch")
    return None


def _runtime(options: Mapping[str, Any]) -> str | None:
    name = options.get("runtime")
    if name is not None and not isinstance(name, str):
        raise InvalidParameters("resource_opts.runtime must be a name", hint="`roost doctor` lists the runtimes")
    return name


def _exec_timeout(options: Mapping[str, Any]) -> float | None:
    value = options.get("exec_timeout")
    if value is None:
        return None
    try:
        seconds = parse_duration(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InvalidParameters("resource_opts.exec_timeout is no duration", hint="seconds, or such as 90s, 5m, 1h30m")
    return seconds


def _rung(options: Mapping[str, Any]) -> Rung:
    try:
        return Rung(int(options.get("min_rung", 0)))
    except (TypeError, ValueError):
        rungs = ", ".join(f"{rung.value} ({rung.name.lower()})" for rung in Rung)
        raise InvalidParameters("resource_opts.min_rung is no rung of isolation", hint=f"one of {rungs}") from None
