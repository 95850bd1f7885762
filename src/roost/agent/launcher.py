"""Launches the sandboxes of one node: which runtime makes one, where it lives, and as whom."""

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from roost.agent.environments import EnvironmentStore
from roost.agent.layout import session_uids
from roost.agent.sandbox_file import SandboxFile, load
from roost.agent.sandboxes import RESTARTED, Sandboxes
from roost.agent.sweep import boot_id, start_time
from roost.runtimes import cgroups
from roost.runtimes.base import Place, Runtime, SandboxHandle, readable
from roost.runtimes.programs import first_closed
from roost.wire.errors import AgentError, CannotEnforce, KeeperGone
from roost.wire.sandboxes import Isolation, SandboxInfo, SandboxSpec, SandboxState

READY_TIMEOUT_S = 20.0

log = structlog.get_logger(__name__)


class Launcher:
    """Launches and restarts sandboxes, each while its lock (`Sandboxes.changing`) is held."""

    def __init__(
        self, data_dir: Path, sandboxes: Sandboxes, runtimes: Mapping[str, Runtime], environments: EnvironmentStore
    ) -> None:
        self._data = data_dir
        self._sandboxes = sandboxes
        self._runtimes = runtimes
        self._environments = environments

    async def launch(self, spec: SandboxSpec) -> SandboxInfo:
        """Launch a sandbox; see `Agent.launch`."""
        launch = functools.partial(self._launch, spec)
        return await self._launch_or_undo(launch, functools.partial(self._sandboxes.end, spec.session_id))

    async def restart(self, record: SandboxFile) -> SandboxInfo:
        """End what there is of a sandbox but its home, and launch one there; see `Agent.restart`."""
        record.state = SandboxState.RESTARTING
        # Written down first: whoever comes after a crash has to leave the home alone.
        self._sandboxes.save(record)
        launch = functools.partial(self._restart, record)
        return await self._launch_or_undo(launch, functools.partial(self._sandboxes.stop, record.spec.session_id))

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

    async def _restart(self, record: SandboxFile) -> SandboxInfo:
        session_id = record.spec.session_id
        if (sandbox := self._sandboxes.live.get(session_id)) is not None:
            await sandbox.aclose()  # before the kill, as in `destroy`
        await self._sandboxes.stop(session_id)
        runs = await self._sandboxes.logs.of(session_id, make=True)
        await runs.restart(RESTARTED)
        (self._sandboxes.folder / session_id / "launch.log").unlink(missing_ok=True)
        return await self._launch(record.spec, record)

    async def _launch(self, spec: SandboxSpec, before: SandboxFile | None = None) -> SandboxInfo:
        """Launch a sandbox; in the home of the one before it, if there was one."""
        runtime = self._choose(spec)
        folder = self._sandboxes.folder / spec.session_id
        home = folder / "home"
        home.mkdir(parents=True, mode=0o700, exist_ok=before is not None)
        home.chmod(0o700)  # its programs may have closed it to themselves
        folder.chmod(0o711)
        uid = before.uid if before is not None else self._free_uid()
        if uid is not None and (closed := first_closed(self._sandboxes.runner)) is not None:
            raise AgentError(
                f"sessions have uids of their own, which cannot pass {closed}",
                hint=f"chmod o+x {closed}, or keep the data elsewhere",
            )
        if uid is not None:
            os.chown(home, uid, uid)
        group = self._sandboxes.group(spec.session_id, spec)
        listener, path = self._bind()
        read_ready, write_ready = os.pipe2(os.O_CLOEXEC)
        try:
            place = Place(
                folder=folder,
                home=home,
                runner=self._sandboxes.runner,
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
            self._sandboxes.save(record)
            assert self._sandboxes.keeper is not None
            handle = await runtime.launch(spec, place, self._sandboxes.keeper)
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
        await self._sandboxes.connect(record, group)
        record.state = SandboxState.RUNNING
        self._sandboxes.save(record)
        log.info("sandbox.launched", session_id=record.spec.session_id, runtime=record.runtime)
        return record.info()

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

    def _free_uid(self) -> int | None:
        """One of the data folder's that no sandbox has; None where sessions have none of their own."""
        if os.getuid() != 0:
            return None
        used = set()
        for path in self._sandboxes.folder.glob("*/sandbox.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                used.add(load(path.parent).uid)
        for uid in session_uids(self._data):
            if uid not in used:
                return uid
        raise AgentError("every session uid is in use")

    def _bind(self) -> tuple[socket.socket, Path]:
        path = self._sandboxes.run_dir / f"{os.urandom(6).hex()}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        path.chmod(0o600)
        return listener, path


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
