"""The seam between the agent and whatever makes sandboxes."""

import asyncio
import contextlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from roost.runtimes.keeper import KeeperClient
from roost.wire.sandboxes import Isolation, RuntimeProbe, SandboxSpec

HOME = "/home/work"
"""Where a session's home is seen inside a sandbox."""
ENVIRONMENT = "/opt/roost/env"
"""Where the packages of a session's image are seen inside a sandbox."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent has prepared for one sandbox before a runtime launches it."""

    folder: Path
    """The sandbox's own folder; the keeper keeps `sandbox.json` and `exit.json` here."""
    home: Path
    runner: Path
    """The installed copy of the runner, readable by every uid."""
    programs: Path
    """Where a runtime may install programs that session uids execute."""
    listener: int
    """Descriptor of the bound socket that the runner will listen on."""
    ready: int
    """Write end of a pipe; the runner writes one byte once it listens."""
    environment: Path | None = None
    """The packages of the session's image, readable by every uid; None where it has none."""
    uid: int | None
    """The session's own uid, or None where the agent may not change it."""
    cgroups: tuple[str, ...] = ()
    """`cgroup.procs` files to join."""


class SandboxHandle(msgspec.Struct, frozen=True, kw_only=True):
    """The two processes that stand for a sandbox."""

    pid: int
    """The keeper's child."""
    start_time: int
    init_pid: int
    """Pid 1 of the sandbox as the host sees it; the same as `pid` where there is no pid namespace."""


class Runtime(ABC):
    """Makes sandboxes on one node. It keeps no state of its own: the sandbox's folder is the state."""

    name: str

    @abstractmethod
    def probe(self) -> RuntimeProbe:
        """What isolation can be given here, and what is missing for more. Cheap, and without side effects."""

    @abstractmethod
    def isolation(self, spec: SandboxSpec, place: Place) -> Isolation:
        """What a sandbox launched like this really has."""

    @abstractmethod
    async def launch(self, spec: SandboxSpec, place: Place, keeper: KeeperClient) -> SandboxHandle:
        """Have the keeper start the sandbox, and return once its pid 1 is known.

        The runner may not answer yet. If this raises or is cancelled, the agent ends what was started by the pid
        in `sandbox.json`.

        Raises:
            AgentError: the keeper or the sandbox's program refused.
        """


def launch_log(folder: Path) -> BinaryIO:
    """Where a sandbox's program complains until its runner speaks; every uid can traverse the folder."""
    return open(folder / "launch.log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def session_settings(spec: SandboxSpec, home: str, environment: str | None, names: str) -> dict[str, Any]:
    """What the runner is told of its session (docs/protocol/runner.md, section 4).

    Args:
        spec: what is launched.
        home: the session's, as seen inside the sandbox.
        environment: that of its image, as seen inside the sandbox.
        names: the folder of `interpreter_names`, as seen inside the sandbox.
    """
    return {
        "home": home,
        "environ": {**spec.environ, "HOME": home},
        "language": spec.interpreter.language,
        "program": spec.interpreter.path if environment is None else f"{environment}/bin/python",
        "path": [names if environment is None else f"{environment}/bin"],
    }


def interpreter_names(spec: SandboxSpec) -> tuple[str, ...]:
    """What the image's interpreter is called inside, whatever the host calls so."""
    return ("python", "python3") if spec.interpreter.language == "python" else ()


@contextlib.contextmanager
def settings_file(settings: Mapping[str, Any]) -> Iterator[int]:
    """The runner's settings as a descriptor for it to inherit: every user of the host can read an argument list."""
    descriptor = os.memfd_create("settings", os.MFD_CLOEXEC)
    try:
        rest = memoryview(json.dumps(settings).encode())
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def readable(descriptor: int) -> None:
    """Wait until a descriptor can be read, or has come to its end; it stays the caller's to close.

    uvloop's transports of pipes are no way to do this. They close a descriptor twice, and what a thread has opened in
    between under the same number is closed with it.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def runtimes() -> Mapping[str, Runtime]:
    """Every installed runtime by name, the strongest first."""
    found = [entry.load()() for entry in entry_points(group="roost.runtimes")]
    return {runtime.name: runtime for runtime in sorted(found, key=lambda r: r.probe().rung, reverse=True)}
