"""No isolation but a home of its own, rlimits and, as root, a uid of its own. Only when asked for by name."""

from pathlib import Path

from roost.runtimes.base import (
    Place,
    Runtime,
    SandboxHandle,
    interpreter_names,
    launch_log,
    session_settings,
    settings_file,
)
from roost.runtimes.keeper import KeeperClient
from roost.wire.sandboxes import Isolation, Rung, RuntimeProbe, SandboxSpec


class ProcessRuntime(Runtime):
    """Stops accidents, not people."""

    name = "process"

    def probe(self) -> RuntimeProbe:
        return RuntimeProbe(
            runtime=self.name,
            available=True,
            rung=Rung.PROCESS,
            gives=("own home", "rlimits"),
            missing=(("isolation from the host and from other sessions", ""),),
        )

    def isolation(self, spec: SandboxSpec, place: Place) -> Isolation:
        gives = ("own home", "rlimits", *(("own uid",) if place.uid is not None else ()))
        return Isolation(rung=Rung.PROCESS, gives=gives)

    async def launch(self, spec: SandboxSpec, place: Place, keeper: KeeperClient) -> SandboxHandle:
        environment = None if place.environment is None else str(place.environment)
        names = place.folder / "bin"
        _link(spec, names)
        told = session_settings(spec, str(place.home), environment, str(names))
        settings = {"socket_fd": 3, "ready_fd": 4, **told}
        argv = [spec.interpreter.runs_runner, "-I", "-S", str(place.runner / "__main__.py"), "5"]
        with launch_log(place.folder) as log, settings_file(settings) as descriptor:
            pid, start_time = await keeper.spawn(
                argv,
                fds={2: log.fileno(), 3: place.listener, 4: place.ready, 5: descriptor},
                uid=place.uid,
                cgroups=place.cgroups,
                folder=place.folder,
                rlimits={"RLIMIT_CORE": 0},
            )
        return SandboxHandle(pid=pid, start_time=start_time, init_pid=pid)


def _link(spec: SandboxSpec, folder: Path) -> None:
    """Once for a sandbox and those that take its place."""
    folder.mkdir(mode=0o755, exist_ok=True)
    for name in interpreter_names(spec):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(spec.interpreter.path)
