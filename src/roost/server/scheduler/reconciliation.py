"""What is done about the sessions of a server before this one: rows are compared with sandboxes, node by node."""

import structlog

from roost.engines.base import Bundle, Engine
from roost.server.domain.sessions import Session
from roost.server.scheduler.ledger import Ledger
from roost.server.scheduler.lives import Lives
from roost.wire.reasons import Reason
from roost.wire.sandboxes import SandboxInfo, SandboxState
from roost.wire.sessions import SessionState as S

log = structlog.get_logger(__name__)

_RESERVING = (S.SCHEDULED, S.PREPARING, S.RUNNING, S.RESTARTING, S.TERMINATING, S.ERROR)


async def reconcile(node_id: str, ledger: Ledger, engine: Engine, lives: Lives) -> None:
    """Known and alive, known and gone, unknown: compare what is written down with what the node has."""
    agent = await engine.agent(node_id)
    alive = {info.session_id: info for info in await agent.sandboxes()}
    lost = {ended.session_id: ended.reason for ended in await agent.lost()}
    for session in await ledger.in_states(*_RESERVING):
        if session.node_id != node_id:
            continue
        info = alive.pop(session.id, None)
        if session.state is S.TERMINATING:
            lives.begin_end(session, session.reason or _ENDED_BEFORE)
        elif session.state is S.RESTARTING:
            await engine.reserve(session.id, [Bundle(node_id=node_id, slots=session.spec.slots)])
            await _recover_restart(ledger, lives, session, info)
        elif info is None and session.state is not S.ERROR:
            await _recover_lost(ledger, lives, session, lost.get(session.id, _UNKNOWN_END))
        else:
            await engine.reserve(session.id, [Bundle(node_id=node_id, slots=session.spec.slots)])
            if session.state in (S.SCHEDULED, S.PREPARING):
                lives.begin_launch(session)  # answers with the sandbox there is
            elif session.state is S.RUNNING and info is not None and info.state is SandboxState.RESTARTING:
                lives.begin_restart(session)  # a power failure took the newer row
            elif session.state is S.RUNNING:
                await lives.on_running(session)
    for session_id in alive:
        log.warning("sandbox.unknown", session_id=session_id)
        await agent.destroy(session_id)


async def _recover_restart(ledger: Ledger, lives: Lives, session: Session, info: SandboxInfo | None) -> None:
    if info is None or info.state is not SandboxState.RUNNING:
        lives.begin_restart(session)
        return
    happening = ("session-restarted", "the server stopped while it was restarted; it runs")
    session = await ledger.move(session, S.RUNNING, happening=happening, isolation=info.isolation)
    await lives.on_running(session)


async def _recover_lost(ledger: Ledger, lives: Lives, session: Session, reason: Reason) -> None:
    if session.state is S.RUNNING:
        await lives.write_terminated(session, reason)
        return
    happening = ("session-requeued", "the server restarted while it was being prepared")
    await ledger.move(session, S.PENDING, happening=happening, node_id=None)


_UNKNOWN_END = Reason(code="self-terminated", sentence="its sandbox was gone when the server came back")
_ENDED_BEFORE = Reason(code="user-requested", sentence="it was being ended when the server stopped")
