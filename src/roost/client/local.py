"""Finds or starts the server of this machine and data folder.

`DIR/server.json` says who serves (`endpoint`, `pid`, `start_time`: field 22 of `/proc/<pid>/stat`, `boot_id`);
`DIR/admin.json` holds `endpoint`, `access_key`, `secret_key`, `token`. A file whose process is gone counts for nothing.
"""

import contextlib
import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from roost.wire.errors import RoostError

START_TIMEOUT_S = 10.0
_POLL_S = 0.02
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ServerNotStarted(RoostError):
    """The local server could not be started."""

    code = "server-not-started"


class ServerFile(msgspec.Struct, frozen=True, kw_only=True):
    """`server.json`."""

    endpoint: str
    pid: int
    start_time: int
    boot_id: str | None = None


class LocalServer(msgspec.Struct, frozen=True, kw_only=True):
    """A running server of this machine, and its administrator's credentials."""

    endpoint: str
    access_key: str
    secret_key: str
    token: str
    pid: int = 0


def default_data_dir() -> Path:
    """Where the local server keeps its data."""
    if given := os.environ.get("ROOST_DATA_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/roost")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "roost"


def read_local_server(data_dir: Path | None = None) -> LocalServer | None:
    """The server that runs on this data folder now, if there is one and we may read its credentials."""
    folder = data_dir or default_data_dir()
    try:
        served = msgspec.json.decode((folder / "server.json").read_bytes(), type=ServerFile)
        admin = msgspec.json.decode((folder / "admin.json").read_bytes(), type=_Admin)
    except (OSError, msgspec.MsgspecError):
        return None
    if not _is_alive(served):
        return None
    return LocalServer(
        endpoint=served.endpoint,
        access_key=admin.access_key,
        secret_key=admin.secret_key,
        token=admin.token,
        pid=served.pid,
    )


def ensure_local_server(data_dir: Path | None = None) -> LocalServer:
    """The server of this data folder; started if none runs. Callers at the same moment share one.

    Raises:
        ServerNotStarted: it cannot be started here, or did not answer within `START_TIMEOUT_S`.
    """
    folder = data_dir or default_data_dir()
    running = read_local_server(folder)
    if running is not None:
        return running
    if importlib.util.find_spec("sqlalchemy") is None or importlib.util.find_spec("roost.server") is None:
        raise ServerNotStarted(
            "no server is configured, and none is installed here",
            hint="pip install 'roost[server]', or set an endpoint",
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    folder.mkdir(parents=True, exist_ok=True)
    with _start_lock(folder, deadline):
        return read_local_server(folder) or _start(folder, deadline)


def revive_local_server(data_dir: Path) -> LocalServer | None:
    """The server of this data folder, started anew if it has crashed; None where there is none for now.

    Who was stopped took `server.json` along, and is not started again behind the back of whoever stopped it.
    """
    running = read_local_server(data_dir)
    if running is not None or not (data_dir / "server.json").exists():
        return running
    try:
        return ensure_local_server(data_dir)
    except ServerNotStarted:  # perhaps somebody else is starting it
        return None


def stop_local_server(data_dir: Path | None = None, timeout_s: float = START_TIMEOUT_S) -> bool:
    """Stop the server of this data folder, and wait for its end; False where none ran. Sessions go on.

    Raises:
        RoostError: it did not end in time.
    """
    running = read_local_server(data_dir)
    if running is None:
        return False
    started = _start_time(running.pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while started is not None and _start_time(running.pid) == started:
        if time.monotonic() > deadline:
            raise RoostError(f"the server (pid {running.pid}) did not stop within {timeout_s:.0f} s")
        time.sleep(_POLL_S)
    return True


class _Admin(msgspec.Struct, frozen=True, kw_only=True):
    """`admin.json`."""

    endpoint: str
    access_key: str
    secret_key: str
    token: str


@contextlib.contextmanager
def _start_lock(folder: Path, deadline: float) -> Iterator[None]:
    """Hold `start.lock`; whoever waited finds the other's server."""
    with (folder / "start.lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerNotStarted(f"somebody else holds {file.name}", hint="try again in a moment") from None
                time.sleep(_POLL_S)
        yield


def _start(folder: Path, deadline: float) -> LocalServer:
    # A stale file would be taken for the new server's if its pid came back into use.
    (folder / "server.json").unlink(missing_ok=True)
    log = folder / "server.log"
    command = [sys.executable, "-m", "roost.server", "--listen", "127.0.0.1:0", "--data-dir", str(folder)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, close_fds=True
        )
    while time.monotonic() < deadline:
        server = read_local_server(folder)
        if server is not None:
            sys.stderr.write(f"started a server on {server.endpoint} (data in {folder}); stop it with `roost down`\n")
            process.returncode = 0  # it outlives us on purpose: no warning about a child that still runs
            return server
        if process.poll() is not None:
            raise ServerNotStarted(f"the server exited with {process.returncode}", hint=f"read {log}")
        time.sleep(_POLL_S)
    process.kill()
    process.wait()
    raise ServerNotStarted(f"the server did not answer within {START_TIMEOUT_S:.0f} s", hint=f"read {log}")


def _is_alive(served: ServerFile) -> bool:
    if served.boot_id is not None and _BOOT_ID.exists() and served.boot_id != _BOOT_ID.read_text().strip():
        return False
    return _start_time(served.pid) == served.start_time


def _start_time(pid: int) -> int | None:
    """When a process began, in clock ticks after boot; None where there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(") ")[2].split()  # the name before may hold blanks and parentheses
    return None if state in "ZX" else int(fields[18])
