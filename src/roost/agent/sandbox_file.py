"""What is written down of a sandbox, in its folder: by the agent before and after each step, by the keeper its end."""

from pathlib import Path
from typing import Any

import msgspec

from roost.agent.sweep import boot_id
from roost.wire.sandboxes import Isolation, SandboxInfo, SandboxSpec, SandboxState


class SandboxFile(msgspec.Struct, kw_only=True):
    """`sandbox.json`: what recovery needs to know. The keeper adds pid, start time and boot id."""

    spec: SandboxSpec
    state: SandboxState
    runtime: str
    isolation: Isolation
    socket: str
    uid: int | None
    launched_at: float
    generation: int = 0
    boot_id: str = ""
    pid: int = 0
    start_time: int = 0
    init_pid: int = 0
    init_start_time: int = 0

    def pids(self) -> dict[int, int]:
        """The processes that stand for the sandbox, by start time; none of another boot."""
        if self.boot_id != boot_id():
            return {}
        pairs = ((self.pid, self.start_time), (self.init_pid, self.init_start_time))
        return {pid: started for pid, started in pairs if pid and started}

    def info(self) -> SandboxInfo:
        """The sandbox as the control plane sees it."""
        return SandboxInfo(
            session_id=self.spec.session_id,
            state=self.state,
            runtime=self.runtime,
            isolation=self.isolation,
            launched_at=self.launched_at,
        )


def load(folder: Path) -> SandboxFile:
    """The record in a sandbox's folder.

    Raises:
        FileNotFoundError: there is none.
        msgspec.DecodeError: it cannot be read.
    """
    return msgspec.json.decode((folder / "sandbox.json").read_bytes(), type=SandboxFile)


def save(folder: Path, record: SandboxFile) -> None:
    """Write it down; it takes the place of the one before at once."""
    path = folder / "sandbox.json"
    making = path.with_suffix(".new")
    making.touch(mode=0o600)
    making.write_bytes(msgspec.json.encode(record))
    making.rename(path)


def read_exit(folder: Path) -> dict[str, Any] | None:
    """What the keeper wrote down of a sandbox's end; None where it wrote nothing."""
    try:
        told = msgspec.json.decode((folder / "exit.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return told if isinstance(told, dict) else None


def how_it_ended(message: dict[str, Any]) -> str:
    """A sentence of what the keeper says of an end."""
    how = f"signal {message['signal']}" if message.get("signal") else f"status {message.get('exit_code')}"
    return f"the sandbox's first process ended with {how}"
