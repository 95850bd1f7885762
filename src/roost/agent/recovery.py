"""What is done about the sandboxes of an earlier agent: those that live are taken over, the others are swept."""

import contextlib

import msgspec
import structlog

from roost.agent.sandbox_file import how_it_ended, read_exit
from roost.agent.sandboxes import RESTARTED, Sandboxes, sandbox_ended
from roost.agent.sweep import boot_id, is_alive
from roost.wire.errors import AgentError, SessionNotFound
from roost.wire.reasons import Reason
from roost.wire.sandboxes import SandboxEnded, SandboxState

log = structlog.get_logger(__name__)


async def recover(sandboxes: Sandboxes) -> list[SandboxEnded]:
    """Take over every sandbox that lives, and sweep what is left of the others; how those that were gone had ended."""
    folders = sorted(sandboxes.folder.iterdir())
    lost = [ended for folder in folders if (ended := await _recover(sandboxes, folder.name)) is not None]
    _sweep_sockets(sandboxes)
    return lost


async def _recover(sandboxes: Sandboxes, session_id: str) -> SandboxEnded | None:
    """Take over one sandbox of an earlier agent, or finish what was left of it; its end, if it was gone."""
    try:
        record = sandboxes.load(session_id)
        group = sandboxes.group(session_id)
        if record.state is SandboxState.RUNNING and is_alive(record.init_pid, record.pids().get(record.init_pid, 0)):
            record.generation += 1
            try:
                sandboxes.save(record)
            except OSError as error:  # the runner takes the same generation once more
                log.warning("sandbox.not_saved", session_id=session_id, error=str(error))
            await sandboxes.connect(record, group)
            log.info("sandbox.recovered", session_id=session_id)
            return None
        if record.state is SandboxState.RESTARTING:
            await sandboxes.stop(session_id)
            with contextlib.suppress(SessionNotFound):
                await sandboxes.logs.of(session_id, lost=RESTARTED)
            log.info("sandbox.kept_for_restart", session_id=session_id)
            return None
        code = "self-terminated" if record.boot_id == boot_id() else "node-lost"
    except (OSError, msgspec.DecodeError, AgentError) as error:
        log.warning("sandbox.not_recovered", session_id=session_id, error=str(error))
        code = "node-lost"
    told = read_exit(sandboxes.folder / session_id)
    sentence = "the sandbox was gone when the agent came back"
    if told is not None:
        sentence = f"{how_it_ended(told)} while no agent was there"
    reason = Reason(code=code, sentence=sentence)
    await sandboxes.end(session_id, reason)
    return sandbox_ended(session_id, reason, told)


def _sweep_sockets(sandboxes: Sandboxes) -> None:
    """A launch that was killed before its record was written has left a socket that no record names."""
    known = {"keeper.sock", *(sandboxes.load(session_id).socket for session_id in sandboxes.live)}
    for path in sandboxes.run_dir.glob("*.sock"):
        if path.name not in known:
            path.unlink(missing_ok=True)
