"""The agent in this process: launches, recovers and ends the sandboxes of one node."""

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from roost.agent.environments import EnvironmentStore
from roost.agent.files import HomeFiles
from roost.agent.install import install_runner
from roost.agent.interpreters import remembering_interpreters
from roost.agent.journal import CAP_BYTES
from roost.agent.layout import check_owner, run_dir, session_uids
from roost.agent.run_logs import KEEP_S, RunLogs
from roost.agent.sandbox import LiveSandbox
from roost.agent.sandbox_file import SandboxFile, how_it_ended, load, read_exit, save
from roost.agent.sweep import boot_id, is_alive, kill_all, remove_group, remove_tree, start_time
from roost.runtimes import cgroups
from roost.runtimes.base import Place, Runtime, SandboxHandle, readable
from roost.runtimes.base import runtimes as installed_runtimes
from roost.runtimes.keeper import KeeperClient
from roost.runtimes.programs import first_closed
from roost.wire.agent import Agent, SessionFiles
from roost.wire.environments import Environment, EnvironmentRequest
from roost.wire.errors import AgentError, CannotEnforce, Conflict, KeeperGone, SessionNotFound, SessionNotRunning
from roost.wire.reasons import Reason
from roost.wire.runs import InterruptOutcome, Page, RunSpec, RunSummary
from roost.wire.sandboxes import (
    Interpreter,
    Isolation,
    RuntimeProbe,
    SandboxEnded,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    SandboxStats,
)

READY_TIMEOUT_S = 20.0
TELLING_S = 1.0
"""How long a keeper may take to tell of an end that the agent has seen itself."""

_RESTARTED = Reason(
    code="session-restarted",
    sentence="the session was restarted while this ran; its variables are lost, its files are kept",
)

log = structlog.get_logger(__name__)


class LocalAgent(Agent):
    """The agent of this machine for one data folder; `open` recovers what an earlier one left."""

    def __init__(
        self,
        data_dir: Path,
        runtimes: Mapping[str, Runtime] | None = None,
        *,
        log_cap_bytes: int = CAP_BYTES,
        log_keep_s: float = KEEP_S,
    ) -> None:
        self._data = data_dir
        self._run_dir = run_dir(data_dir)
        self._runtimes = runtimes if runtimes is not None else installed_runtimes()
        self._hierarchies = cgroups.Hierarchies()
        self._environments = EnvironmentStore(self._images)
        self._keeper: KeeperClient | None = None
        self._runner = Path()
        self._logs = RunLogs(
            data_dir / "logs",
            self._note_finished,
            lambda session_id: (self._sandboxes / session_id).exists(),
            cap_bytes=log_cap_bytes,
            keep_s=log_keep_s,
        )
        self._live: dict[str, LiveSandbox] = {}
        self._launching: dict[str, asyncio.Lock] = {}
        self._ended: asyncio.Queue[SandboxEnded] = asyncio.Queue()
        self._finished: asyncio.Queue[tuple[str, RunSummary]] = asyncio.Queue()
        self._lost: list[SandboxEnded] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: dict[str, int] = {}
        """pidfds of the sandboxes' first processes, since a keeper tells of the ends of its own children only"""

    async def open(self) -> None:
        """Start or find the keeper, and take over every sandbox that lives; the others are swept."""
        for folder, mode in (
            (self._data, 0o711),
            (self._sandboxes, 0o711),
            (self._images, 0o711),
            (self._run_dir, 0o711),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            if folder != self._data or os.access(folder, os.W_OK):
                folder.chmod(mode)
        check_owner(self._run_dir)
        self._runner = await asyncio.to_thread(install_runner, self._data)
        self._logs.open()
        await self._environments.open()
        self._hierarchies = cgroups.here()
        self._keeper = KeeperClient(self._run_dir, self._runner, self._data / "keeper.log", self._on_exit)
        await self._keeper.open()
        for folder in sorted(self._sandboxes.iterdir()):
            await self._recover(folder)
        self._sweep_sockets()
        self._logs.begin_sweeping()

    async def aclose(self) -> None:
        """Let go of everything; sandboxes and runs go on. A keeper that has nothing to keep ends."""
        is_idle = not self._live
        for session_id, sandbox in list(self._live.items()):
            self._unwatch(session_id)
            await sandbox.aclose()
        self._live.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._keeper is not None:
            if is_idle and self._keeper.is_connected:
                try:
                    await self._keeper.retire()
                except AgentError as error:
                    log.warning("keeper.not_retired", error=error.message)
            await self._keeper.aclose()
        await self._logs.aclose()

    # Sandboxes

    async def interpreters(self) -> list[Interpreter]:
        return await asyncio.to_thread(remembering_interpreters, self._images / "programs.json")

    async def build(self, request: EnvironmentRequest) -> AsyncGenerator[str | Environment, None]:
        async with contextlib.aclosing(self._environments.build(request)) as steps:
            async for step in steps:
                yield step

    async def environments(self) -> list[str]:
        return await asyncio.to_thread(self._environments.digests)

    async def remove_environment(self, digest: str) -> None:
        for folder in self._sandboxes.iterdir():
            with contextlib.suppress(OSError, msgspec.DecodeError):  # it is only being made, or on its way out
                if self._load(folder.name).spec.environment == digest:
                    raise Conflict(f"session {folder.name} uses the environment {digest[:12]}")
        await self._environments.remove(digest)

    async def probe(self) -> list[RuntimeProbe]:
        return [runtime.probe() for runtime in self._runtimes.values()]

    async def launch(self, spec: SandboxSpec) -> SandboxInfo:
        async with self._launching.setdefault(spec.session_id, asyncio.Lock()):
            if spec.session_id in self._live:
                return self._load(spec.session_id).info()
            launch = functools.partial(self._launch, spec)
            return await self._launch_or_undo(launch, functools.partial(self._end, spec.session_id))

    async def _launch_or_undo(
        self, launch: Callable[[], Awaitable[SandboxInfo]], undo: Callable[[], Awaitable[None]]
    ) -> SandboxInfo:
        """Launch, and once more where the keeper dies meanwhile: what is undone has run no code of the user's."""

        async def once() -> SandboxInfo:
            try:
                return await launch()
            except BaseException:
                await asyncio.shield(undo())
                raise

        try:
            return await once()
        except KeeperGone as error:
            log.warning("sandbox.launched_again", error=error.message)
            return await once()

    async def _launch(self, spec: SandboxSpec, before: SandboxFile | None = None) -> SandboxInfo:
        """Launch a sandbox; in the home of the one before it, if there was one."""
        runtime = self._choose(spec)
        folder = self._sandboxes / spec.session_id
        home = folder / "home"
        home.mkdir(parents=True, mode=0o700, exist_ok=before is not None)
        home.chmod(0o700)  # its programs may have closed it to themselves
        folder.chmod(0o711)
        uid = before.uid if before is not None else self._free_uid()
        if uid is not None and (closed := first_closed(self._runner)) is not None:
            raise AgentError(
                f"sessions have uids of their own, which cannot pass {closed}",
                hint=f"chmod o+x {closed}, or keep the data elsewhere",
            )
        if uid is not None:
            os.chown(home, uid, uid)
        group = self._group(spec.session_id, spec)
        listener, path = self._bind()
        read_ready, write_ready = os.pipe2(os.O_CLOEXEC)
        try:
            place = Place(
                folder=folder,
                home=home,
                runner=self._runner,
                environment=None if spec.environment is None else self._environments.find(spec.environment),
                programs=self._data / "programs",
                listener=listener.fileno(),
                ready=write_ready,
                uid=uid,
                cgroups=group.procs_files if group is not None else (),
            )
            isolation = self._isolation(runtime, spec, place)
            record = SandboxFile(
                spec=spec,
                state=SandboxState.LAUNCHING if before is None else SandboxState.RESTARTING,
                runtime=runtime.name,
                isolation=isolation,
                socket=path.name,
                uid=uid,
                launched_at=time.time(),
                boot_id=boot_id(),
            )
            self._save(record)
            assert self._keeper is not None
            handle = await runtime.launch(spec, place, self._keeper)
            os.close(write_ready)
            write_ready = -1
            await _wait_ready(read_ready, folder / "launch.log")
            return await self._adopt_launched(record, handle, group)
        finally:
            listener.close()
            os.close(read_ready)
            if write_ready >= 0:
                os.close(write_ready)

    async def _adopt_launched(
        self, record: SandboxFile, handle: SandboxHandle, group: cgroups.SandboxGroup | None
    ) -> SandboxInfo:
        record.pid, record.start_time = handle.pid, handle.start_time
        record.init_pid, record.init_start_time = handle.init_pid, start_time(handle.init_pid) or 0
        record.generation = 1
        await self._connect(record, group)
        record.state = SandboxState.RUNNING
        self._save(record)
        log.info("sandbox.launched", session_id=record.spec.session_id, runtime=record.runtime)
        return record.info()

    async def _connect(self, record: SandboxFile, group: cgroups.SandboxGroup | None) -> None:
        session_id = record.spec.session_id
        runs = await self._logs.of(session_id, make=True)
        sandbox = LiveSandbox(session_id, runs, group, record.spec.limits.mem_bytes, self._on_breach)
        try:
            await sandbox.connect(self._run_dir / record.socket, record.generation, record.uid, record.init_pid)
        except BaseException:
            await sandbox.aclose()
            raise
        self._live[session_id] = sandbox
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
        if (sandbox := self._live.get(session_id)) is not None:
            self._spawn(self._lose_untold(session_id, sandbox))

    async def _lose_untold(self, session_id: str, sandbox: LiveSandbox) -> None:
        """The keeper whose child it was tells with which status it ended; after another one's death nobody knows."""
        if self._keeper is not None and self._keeper.is_connected:
            await asyncio.sleep(TELLING_S)
        sentence = "the sandbox's first process ended; its status is unknown, since its keeper was gone"
        await self._lose(session_id, sandbox, Reason(code="self-terminated", sentence=sentence))

    async def restart(self, session_id: str) -> SandboxInfo:
        async with self._launching.setdefault(session_id, asyncio.Lock()):
            try:
                record = self._load(session_id)
            except FileNotFoundError:
                self._sandbox(session_id)
                raise AgentError(f"the sandbox of session {session_id} has no record") from None
            record.state = SandboxState.RESTARTING
            # Written down first: whoever comes after a crash has to leave the home alone.
            self._save(record)
            launch = functools.partial(self._restart, record)
            return await self._launch_or_undo(launch, functools.partial(self._stop, session_id))

    async def _restart(self, record: SandboxFile) -> SandboxInfo:
        session_id = record.spec.session_id
        if (sandbox := self._live.get(session_id)) is not None:
            await sandbox.aclose()  # before the kill, as in `destroy`
        await self._stop(session_id)
        runs = await self._logs.of(session_id, make=True)
        await runs.restart(_RESTARTED)
        (self._sandboxes / session_id / "launch.log").unlink(missing_ok=True)
        return await self._launch(record.spec, record)

    async def destroy(self, session_id: str) -> SandboxStats:
        async with self._launching.setdefault(session_id, asyncio.Lock()):
            stats = SandboxStats()
            if session_id in self._live:
                stats = await self.stats(session_id)
            reason = Reason(code="sandbox-destroyed", sentence="the session was ended while this ran")
            if (sandbox := self._live.get(session_id)) is not None:
                # Before the kill: how the runner saw its kernel die of it is not how the run ended.
                await sandbox.aclose()
            await self._end(session_id, reason)
        self._launching.pop(session_id, None)
        return stats

    async def sandboxes(self) -> list[SandboxInfo]:
        waiting = [path.name for path in self._sandboxes.iterdir() if path.name not in self._live]
        kept = [info for session_id in waiting if (info := self._kept(session_id)) is not None]
        return [self._load(session_id).info() for session_id in self._live] + kept

    def _kept(self, session_id: str) -> SandboxInfo | None:
        """A sandbox of which only the home is left, for a restart."""
        try:
            record = self._load(session_id)
        except (OSError, msgspec.DecodeError):
            return None
        return record.info() if record.state is SandboxState.RESTARTING else None

    async def ended(self) -> AsyncIterator[SandboxEnded]:
        while True:
            yield await self._ended.get()

    async def lost(self) -> list[SandboxEnded]:
        return list(self._lost)

    async def stats(self, session_id: str) -> SandboxStats:
        self._sandbox(session_id)
        group = self._group(session_id)
        return group.stats() if group is not None else SandboxStats()

    # Runs

    async def start(self, session_id: str, run: RunSpec) -> RunSummary:
        return await self._sandbox(session_id).start(run)

    async def feed(self, session_id: str, run_id: str, *, prompt: int | None, text: str | None) -> None:
        await self._sandbox(session_id).feed(run_id, prompt, text)

    async def complete(self, session_id: str, text: str) -> list[str]:
        return await self._sandbox(session_id).complete(text)

    async def interrupt(
        self, session_id: str, run_id: str | None = None, *, grace_s: float | None = None
    ) -> InterruptOutcome:
        return await self._sandbox(session_id).interrupt(run_id, grace_s)

    async def read(
        self, session_id: str, run_id: str, *, after: int, max_bytes: int = 1 << 20, wait_s: float = 0.0
    ) -> Page:
        runs = await self._logs.of(session_id)
        return await runs.read(run_id, after=after, max_bytes=max_bytes, wait_s=wait_s)

    async def runs(self, session_id: str) -> list[RunSummary]:
        return [run.summary() for run in (await self._logs.of(session_id)).all()]

    async def finished(self) -> AsyncIterator[tuple[str, RunSummary]]:
        while True:
            yield await self._finished.get()

    def _note_finished(self, session_id: str, run: RunSummary) -> None:
        self._finished.put_nowait((session_id, run))

    async def cursor(self, session_id: str, run_id: str) -> int:
        return (await self._logs.of(session_id)).run(run_id).cursor

    async def move_cursor(self, session_id: str, run_id: str, seq: int) -> None:
        runs = await self._logs.of(session_id)
        await runs.move_cursor(runs.run(run_id), seq)

    def files(self, session_id: str) -> SessionFiles:
        self._sandbox(session_id)
        return HomeFiles(self._sandboxes / session_id / "home", self._load(session_id).uid)

    # Recovery and ends

    async def _recover(self, folder: Path) -> None:
        """Take over one sandbox of an earlier agent, or finish what was left of it."""
        session_id = folder.name
        try:
            record = self._load(session_id)
            group = self._group(session_id)
            if record.state is SandboxState.RUNNING and is_alive(
                record.init_pid, record.pids().get(record.init_pid, 0)
            ):
                record.generation += 1
                try:
                    self._save(record)
                except OSError as error:  # the runner takes the same generation once more
                    log.warning("sandbox.not_saved", session_id=session_id, error=str(error))
                await self._connect(record, group)
                log.info("sandbox.recovered", session_id=session_id)
                return
            if record.state is SandboxState.RESTARTING:
                await self._stop(session_id)
                with contextlib.suppress(SessionNotFound):
                    await self._logs.of(session_id, lost=_RESTARTED)
                log.info("sandbox.kept_for_restart", session_id=session_id)
                return
            code = "self-terminated" if record.boot_id == boot_id() else "node-lost"
        except (OSError, msgspec.DecodeError, AgentError) as error:
            log.warning("sandbox.not_recovered", session_id=session_id, error=str(error))
            code = "node-lost"
        told = read_exit(folder)
        sentence = "the sandbox was gone when the agent came back"
        if told is not None:
            sentence = f"{how_it_ended(told)} while no agent was there"
        reason = Reason(code=code, sentence=sentence)
        await self._end(session_id, reason)
        self._lost.append(_ended(session_id, reason, told))

    def _sweep_sockets(self) -> None:
        """A launch that was killed before its record was written has left a socket that no record names."""
        known = {"keeper.sock", *(self._load(session_id).socket for session_id in self._live)}
        for path in self._run_dir.glob("*.sock"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    async def _lose(
        self, session_id: str, sandbox: LiveSandbox, reason: Reason, message: dict[str, Any] | None = None
    ) -> None:
        """End a sandbox that went away by itself, unless somebody was quicker."""
        async with self._launching.setdefault(session_id, asyncio.Lock()):
            if self._live.get(session_id) is not sandbox:
                return
            await self._end(session_id, reason)
        await self._ended.put(_ended(session_id, reason, message))

    async def _end(self, session_id: str, reason: Reason | None = None) -> None:
        """Leave nothing of a sandbox but its log."""
        await self._stop(session_id)
        if reason is not None:
            with contextlib.suppress(SessionNotFound):
                await self._logs.of(session_id, lost=reason)
        # The folder goes last: whoever comes after a crash finds by it what there is left to do.
        await asyncio.to_thread(remove_tree, self._sandboxes / session_id)

    async def _stop(self, session_id: str) -> None:
        """Leave nothing of a sandbox but its log and its folder."""
        sandbox = self._live.pop(session_id, None)
        self._unwatch(session_id)
        folder = self._sandboxes / session_id
        group = self._group(session_id)
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            record = self._load(session_id)
            await kill_all(record.pids(), group, folder)
            (self._run_dir / record.socket).unlink(missing_ok=True)
        if group is not None:
            await kill_all({}, group, folder)
            await remove_group(group)
        if sandbox is not None:
            await sandbox.aclose()

    def _on_exit(self, message: dict[str, Any]) -> None:
        """The keeper says that a child of its ended."""
        session_id = Path(str(message.get("dir", ""))).name
        sandbox = self._live.get(session_id)
        # An older child of the same session was ended by a restart.
        if sandbox is not None and message.get("pid") == self._load(session_id).pid:
            reason = Reason(code="self-terminated", sentence=how_it_ended(message))
            self._spawn(self._lose(session_id, sandbox, reason, message))

    def _on_breach(self, session_id: str, error: str) -> None:
        if (sandbox := self._live.get(session_id)) is not None:
            reason = Reason(code="protocol-error", sentence=f"the sandbox broke the runner's protocol: {error}")
            self._spawn(self._lose(session_id, sandbox, reason))

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Places

    @property
    def _sandboxes(self) -> Path:
        return self._data / "sandboxes"

    @property
    def _images(self) -> Path:
        return self._data / "images"

    def _choose(self, spec: SandboxSpec) -> Runtime:
        """The named runtime, else the strongest; `process` only by name."""
        candidates = [runtime for name, runtime in self._runtimes.items() if name == spec.runtime]
        if spec.runtime is None:
            candidates = [runtime for name, runtime in self._runtimes.items() if name != "process"]
        for runtime in candidates:
            probe = runtime.probe()
            if probe.available and probe.rung >= spec.min_rung:
                return runtime
        wanted = spec.runtime or f"a runtime of rung {spec.min_rung} or higher"
        raise CannotEnforce(f"this host cannot give {wanted}")

    def _isolation(self, runtime: Runtime, spec: SandboxSpec, place: Place) -> Isolation:
        """What is given, and of the limits those that are not; a named one of these is refused."""
        isolation = runtime.isolation(spec, place)
        enforced = {"cpu", "mem", "pids"} if place.cgroups else set()
        missing = [name for name in ("cpu", "mem", "pids") if name not in enforced]
        missing += ["scratch"]
        refused = spec.limits.named.intersection(missing)
        if refused:
            raise CannotEnforce(f"this host cannot limit {', '.join(sorted(refused))}")
        return msgspec.structs.replace(isolation, not_enforced=tuple(missing))

    def _group(self, session_id: str, spec: SandboxSpec | None = None) -> cgroups.SandboxGroup | None:
        if not self._hierarchies.controllers >= {"cpu", "memory", "pids"}:
            return None
        group = cgroups.SandboxGroup(self._hierarchies, f"roost-{self._run_dir.name}-{session_id}")
        if spec is not None:
            group.create(spec.limits)
        return group

    def _free_uid(self) -> int | None:
        """One of the data folder's that no sandbox has; None where sessions have none of their own."""
        if os.getuid() != 0:
            return None
        used = set()
        for path in self._sandboxes.glob("*/sandbox.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                used.add(load(path.parent).uid)
        for uid in session_uids(self._data):
            if uid not in used:
                return uid
        raise AgentError("every session uid is in use")

    def _bind(self) -> tuple[socket.socket, Path]:
        path = self._run_dir / f"{os.urandom(6).hex()}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        path.chmod(0o600)
        return listener, path

    def _load(self, session_id: str) -> SandboxFile:
        return load(self._sandboxes / session_id)

    def _save(self, record: SandboxFile) -> None:
        save(self._sandboxes / record.spec.session_id, record)

    def _sandbox(self, session_id: str) -> LiveSandbox:
        sandbox = self._live.get(session_id)
        if sandbox is not None:
            return sandbox
        if self._logs.has(session_id):
            raise SessionNotRunning(f"the sandbox of session {session_id} is gone")
        raise SessionNotFound(f"this node has no session {session_id}")


def _ended(session_id: str, reason: Reason, message: dict[str, Any] | None) -> SandboxEnded:
    told = message or {}
    return SandboxEnded(
        session_id=session_id, reason=reason, exit_code=told.get("exit_code"), signal=told.get("signal")
    )


async def _wait_ready(descriptor: int, launch_log: Path) -> None:
    """Until the runner listens; the pipe's end without a byte means that it never will."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await readable(descriptor)
    except TimeoutError:
        raise AgentError("the runner did not start in time") from None
    if not os.read(descriptor, 1):
        said = await asyncio.to_thread(launch_log.read_text, errors="replace")
        raise AgentError(f"the sandbox did not start: {said.strip()[-2000:] or 'it said nothing'}")
