"""The seam between control plane and node."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager

from roost.wire.environments import Environment, EnvironmentRequest
from roost.wire.runs import InterruptOutcome, Page, RunSpec, RunSummary
from roost.wire.sandboxes import (
    FileInfo,
    Interpreter,
    RuntimeProbe,
    SandboxEnded,
    SandboxInfo,
    SandboxSpec,
    SandboxStats,
)


class OpenFile(ABC):
    """A regular file that is open; whatever happens to its name, it stays this file."""

    info: FileInfo
    """As it was when it was opened."""

    @abstractmethod
    async def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from an offset; empty at the end of the file."""


class SessionFiles(ABC):
    """The files of one session's home, `/home/work`.

    Paths are relative to the home, or absolute beneath `/home/work`. Nothing outside is ever reached, by
    whatever link or race: such a path raises `Forbidden`. A missing one raises `FileNotFoundInSession`.
    Works while the sandbox lives, also between kernels.
    """

    @abstractmethod
    async def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, hidden ones included, not recursive, by name."""

    @abstractmethod
    async def write(self, path: str, content: bytes) -> None:
        """Write a whole file, owned by the session's user; missing folders are made."""

    @abstractmethod
    async def read(self, path: str, *, max_bytes: int) -> bytes:
        """Read a whole regular file.

        Raises:
            LimitExceeded: it is longer than `max_bytes`.
        """

    @abstractmethod
    async def info(self, path: str) -> FileInfo:
        """What a path names; a link is not followed."""

    @abstractmethod
    def open(self, path: str) -> AbstractAsyncContextManager[OpenFile]:
        """Open a regular file for as long as the block lasts."""

    @abstractmethod
    async def store(self, path: str, content: AsyncIterator[bytes]) -> bool:
        """Write a file from its pieces, owned by the session's user; whether there was none before.

        It takes its name when all of it is there: where the pieces break off, nothing has changed.
        """

    @abstractmethod
    async def remove(self, path: str) -> None:
        """Remove a file, a link or an empty folder.

        Raises:
            InvalidParameters: the folder is not empty.
        """

    @abstractmethod
    def tar(self, path: str) -> AsyncIterator[bytes]:
        """The same as `archive` in pieces, without a limit. The path is looked up with the first piece."""

    @abstractmethod
    async def archive(self, path: str, *, max_bytes: int) -> bytes:
        """An uncompressed tar of one file or folder under its base name; links stay links.

        What has a path of more than 4,095 bytes is left out.

        Raises:
            LimitExceeded: the archive would be longer than `max_bytes`.
        """


class Agent(ABC):
    """One node's sandboxes, runs and run logs.

    Every call that names a session raises `SessionNotFound` where the node knows no such session. All calls
    survive the caller's cancellation: a launch is undone, everything else either happened or did not.
    """

    @abstractmethod
    async def interpreters(self) -> list[Interpreter]:
        """The interpreters that host images can be made of here, best of each language first."""

    @abstractmethod
    def build(self, request: EnvironmentRequest) -> AsyncGenerator[str | Environment, None]:
        """Make an environment of packages, unless it is there.

        Gives what the builder says, and at the end the environment. A caller that does not read to the end gives the
        build up: `aclose` leaves nothing of it.

        Raises:
            InvalidParameters: the requirements cannot be met; the message has the builder's last lines.
            AgentError: the builder is missing or takes too long.
        """

    @abstractmethod
    async def environments(self) -> list[str]:
        """The digests of the environments that are there."""

    @abstractmethod
    async def remove_environment(self, digest: str) -> None:
        """Remove an environment, if it is there.

        Raises:
            Conflict: a sandbox uses it.
        """

    @abstractmethod
    async def probe(self) -> list[RuntimeProbe]:
        """What each runtime can give here, the strongest first."""

    @abstractmethod
    async def launch(self, spec: SandboxSpec) -> SandboxInfo:
        """Start a sandbox and return once its runner has answered.

        Launching the same session twice returns the first sandbox. A failed launch leaves nothing.

        Raises:
            CannotEnforce: a named limit or the demanded rung cannot be given here.
            AgentError: it did not start; the message says why.
        """

    @abstractmethod
    async def restart(self, session_id: str) -> SandboxInfo:
        """End a sandbox as `destroy` does, but for its home, and launch it anew there; returns once its runner answers.

        The new one has the same uid, limits and environment. Runs that had not ended end `sandbox-lost` with the
        reason `session-restarted`; the log goes on, and the next run's `started` says `state_lost` if runs had
        started before. `ended` does not tell of the sandbox that this ends.

        A call that fails or is cancelled leaves no process, and the home: `sandboxes` answers `restarting`, also
        after a crash in the middle. May be called again then, which completes the work; so does `destroy`.

        Raises:
            SessionNotRunning: the sandbox is gone, and its home with it.
            AgentError: it could not be ended, or did not start; the message says why.
        """

    @abstractmethod
    async def destroy(self, session_id: str) -> SandboxStats:
        """End a sandbox completely; no process, mount, cgroup, socket or scratch file of it remains.

        Its run log stays. Runs that had not ended end `sandbox-lost`. May be called again, also for a session
        that never was; a call after a crash in the middle completes the work.

        Raises:
            AgentError: something of it could not be ended; the message says what remains.
        """

    @abstractmethod
    async def sandboxes(self) -> list[SandboxInfo]:
        """Every sandbox on this node, those included of which only the home is left for a `restart`."""

    @abstractmethod
    def ended(self) -> AsyncIterator[SandboxEnded]:
        """Sandboxes that go away without `destroy`, each once."""

    @abstractmethod
    async def lost(self) -> list[SandboxEnded]:
        """Sandboxes that were found gone when the agent started; the same ones until it starts anew."""

    @abstractmethod
    async def stats(self, session_id: str) -> SandboxStats:
        """The sandbox's counters now."""

    @abstractmethod
    async def start(self, session_id: str, run: RunSpec) -> RunSummary:
        """Accept a run; it is in the log when this returns, and is executed at most once.

        Runs of a session execute in the order of their acceptance. The same id with the same code and mode
        answers the same run with `created` false.

        Raises:
            RunAlreadyExists: the id exists with other code.
            SessionNotRunning: the sandbox is gone.
        """

    @abstractmethod
    async def feed(self, session_id: str, run_id: str, *, prompt: int | None, text: str | None) -> None:
        """Answer a prompt with a line of text without its line end, or with end-of-file (None).

        `prompt` None is the one that waits now. A second answer to one prompt changes nothing.

        Raises:
            RunNotFound: no such run.
            InvalidParameters: the run has had no such prompt.
        """

    @abstractmethod
    async def interrupt(
        self, session_id: str, run_id: str | None = None, *, grace_s: float | None = None
    ) -> InterruptOutcome:
        """Interrupt a run, or whatever runs now.

        With `grace_s` this waits for the end of the run, and kills its interpreter where the run is still there after
        so many seconds; without, it only sends.
        """

    @abstractmethod
    async def complete(self, session_id: str, text: str) -> list[str]:
        """Names that could end this text, by the variables of the live interpreter; none where it is busy.

        Args:
            text: what stands before the cursor; its end is completed.
        """

    @abstractmethod
    async def read(
        self, session_id: str, run_id: str, *, after: int, max_bytes: int = 1 << 20, wait_s: float = 0.0
    ) -> Page:
        """Events of a run with a seq above `after`, in order, at most about `max_bytes` of them.

        Where there are none yet and the run has not ended, waits up to `wait_s` for the first. Works for
        sessions that have ended, as long as their log exists. Run id `""` is the session's run 0.

        Raises:
            RunNotFound: no such run.
        """

    @abstractmethod
    async def runs(self, session_id: str) -> list[RunSummary]:
        """Every run of a session, oldest first, run 0 left out."""

    @abstractmethod
    def finished(self) -> AsyncIterator[tuple[str, RunSummary]]:
        """Runs as they end, each once, with the id of their session. Those that ended before are in `runs`."""

    @abstractmethod
    async def cursor(self, session_id: str, run_id: str) -> int:
        """The last seq that the compatible poll delivered of this run; 0 at first. Survives a crash."""

    @abstractmethod
    async def move_cursor(self, session_id: str, run_id: str, seq: int) -> None:
        """Set the poll's cursor."""

    @abstractmethod
    def files(self, session_id: str) -> SessionFiles:
        """The session's files."""
