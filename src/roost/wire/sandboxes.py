"""What the control plane asks of a node, and what the node says it gave."""

from enum import IntEnum, StrEnum

import msgspec

from roost.wire.reasons import Reason


class Rung(IntEnum):
    """How strong a sandbox's isolation is (docs/architecture.md, Isolation)."""

    PROCESS = 0
    """own home and rlimits; stops accidents, not people"""
    LANDLOCK = 1
    NAMESPACES = 2
    """own namespaces, read-only system, system call filter, no capabilities"""
    NAMESPACES_AND_LIMITS = 3
    """the same, and hard limits and a uid of its own"""
    CONTAINER = 4


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Hard limits of one sandbox. `named` lists those that the request asked for by name."""

    cpu: float = 1.0
    """Cores."""
    mem_bytes: int = 1 << 30
    pids: int = 256
    scratch_bytes: int | None = None
    """Size of the home folder; None is unlimited."""
    named: frozenset[str] = frozenset()
    """Of `cpu`, `mem`, `pids`, `scratch`: these must be enforced, or the launch is refused."""


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """The program of a host image: an interpreter or a compiler. Paths are absolute, as seen inside the sandbox."""

    language: str
    version: str
    path: str
    python: str | None = None
    """The Python that executes the runner; None where `path` does."""

    @property
    def runs_runner(self) -> str:
        """The path of the Python that executes the runner."""
        return self.python or self.path


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a node needs to know to launch a session's sandbox."""

    session_id: str
    interpreter: Interpreter
    environment: str | None = None
    """The digest of the packages that come with it (wire/environments.py)."""
    limits: Limits = Limits()
    runtime: str | None = None
    """The runtime's name; None lets the node take its best. `process` is never taken unless named."""
    min_rung: Rung = Rung.PROCESS
    environ: dict[str, str] = {}
    hostname: str = "main1"


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox's isolation really is."""

    rung: Rung
    gives: tuple[str, ...] = ()
    not_enforced: tuple[str, ...] = ()
    """Limits that were wanted by default and cannot be enforced here, each with its reason."""


class SandboxState(StrEnum):
    LAUNCHING = "launching"
    RUNNING = "running"
    RESTARTING = "restarting"
    """ended, or being launched anew; its home is kept for the next `restart`"""


class SandboxInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox as its node sees it."""

    session_id: str
    state: SandboxState
    runtime: str
    isolation: Isolation
    launched_at: float
    """Unix time, seconds."""


class SandboxStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one sandbox since it was launched; None is not measured on this host."""

    cpu_s: float | None = None
    mem_bytes: int | None = None
    mem_peak_bytes: int | None = None
    pids: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


class SandboxEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox went away without being destroyed."""

    session_id: str
    reason: Reason
    """`self-terminated`, `node-lost`"""
    exit_code: int | None = None
    signal: int | None = None


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a folder in a session's home."""

    filename: str
    mode: str
    """As `ls -l` writes it."""
    size: int
    """Bytes."""
    ctime: float
    mtime: float
    atime: float


class RuntimeProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What one runtime can give on this host, and what would make it more."""

    runtime: str
    available: bool
    rung: Rung
    gives: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    """Pairs of what is missing and the command that would mend it (empty where none would)."""
