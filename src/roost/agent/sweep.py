"""Ending a sandbox completely, whatever its code did."""

import asyncio
import contextlib
import errno
import os
import select
import signal
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from roost.runtimes.cgroups import SandboxGroup
from roost.wire.errors import AgentError

KILL_TIMEOUT_S = 10.0
REAPING_S = 0.002
HOLD_S = 0.2
"""How long a process that is to be killed may take to stop first."""


def boot_id() -> str:
    """This boot of the machine; pids of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Field 22 of `/proc/<pid>/stat`, which tells two processes of one pid apart; None without a process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that had this pid then still runs; zombies do not."""
    fields = _stat(pid)
    return bool(fields) and int(fields[19]) == started and fields[0] not in ("Z", "X")


def _stat(pid: int) -> list[str]:
    """The fields of a process from its state on, read once: it may end between two looks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


async def kill_all(pids: dict[int, int], group: SandboxGroup | None, folder: Path) -> None:
    """Kill the processes that stand for a sandbox (pid → start time), and everything below them or in its group.

    Args:
        folder: the sandbox's; without a group, bubblewraps that were told of it belong to it too. One that dies early,
            as when nobody reads what it reports, leaves a child behind that waits for it for ever.

    Raises:
        AgentError: something lives on after ten seconds.
    """
    async with _patience(f"processes of the sandbox {sorted(pids)} do not end"):
        while living := await asyncio.to_thread(_living, pids, group, folder):
            watched = [descriptor for pid in living if (descriptor := _kill(pid)) is not None]
            try:
                await asyncio.to_thread(_wait_any, watched)
            finally:
                for descriptor in watched:
                    os.close(descriptor)


async def remove_group(group: SandboxGroup) -> None:
    """Remove a group whose processes were killed; the kernel keeps it busy until the last zombie is reaped.

    Raises:
        AgentError: it is still busy after ten seconds.
    """
    async with _patience(f"the control groups {group.procs_files} stay busy"):
        while True:
            try:
                await asyncio.to_thread(group.remove)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                await asyncio.sleep(REAPING_S)  # no event tells of a reaped zombie that is not our child
            else:
                return


@contextlib.asynccontextmanager
async def _patience(sentence: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(KILL_TIMEOUT_S):
            yield
    except TimeoutError:
        raise AgentError(sentence, hint="look for processes in uninterruptible sleep with `ps -eo pid,stat`") from None


def _living(pids: dict[int, int], group: SandboxGroup | None, folder: Path) -> set[int]:
    living = {pid for pid, started in pids.items() if is_alive(pid, started)}
    if group is not None:  # which nothing in a sandbox can leave
        living.update(group.pids())
    else:
        living = _hold_family(living | _bubblewraps(folder))
    return {pid for pid in living if (fields := _stat(pid)) and fields[0] not in ("Z", "X")}


def _hold_family(pids: set[int]) -> set[int]:
    """These processes and all below them; each is stopped before its children are looked for, and makes no more."""
    family: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in family:
            family.add(pid)
            _hold(pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                waiting += [child.pid for child in psutil.Process(pid).children()]
    return family


def _bubblewraps(folder: Path) -> set[int]:
    """Bubblewraps that have not become what they were to start yet, by the folder in their arguments."""
    told = f"{folder}/".encode()
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            program, _, arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().partition(b"\0")
            if program.endswith(b"bwrap") and told in arguments:
                found.add(process.pid)
    return found


def _hold(pid: int) -> None:
    """Stop a process, and wait until it has stopped; not for long, since one in the midst of a system call may not."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + HOLD_S
    while (fields := _stat(pid)) and fields[0] not in "TtZX" and time.monotonic() < deadline:
        time.sleep(REAPING_S)


def _kill(pid: int) -> int | None:
    """Send SIGKILL through a pidfd, which cannot hit a process that was born since."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        os.close(descriptor)
        return None
    return descriptor


def _wait_any(descriptors: list[int]) -> None:
    """Until one of them has ended; zombies count as ended."""
    if not descriptors:
        return
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    poll.poll(1000)


def remove_tree(path: Path) -> None:
    """Remove a folder whatever is in it: any depth, any mode, any name.

    Nested folders are moved up to the top and emptied there, so neither depth, path length nor descriptors grow.
    The keeper may still write the status of the sandbox's end here, by a rename.
    """
    while True:
        try:
            top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            _empty(top)
        finally:
            os.close(top)
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise


def _empty(top: int) -> None:
    moved = 0
    while names := os.listdir(top):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if _is_folder(top, name):
                    moved = _flatten(top, name, moved)
                else:
                    os.unlink(name, dir_fd=top)


def _flatten(top: int, name: str, moved: int) -> int:
    """Empty one folder of `top` by moving its folders up, then remove it."""
    with contextlib.suppress(PermissionError):
        os.chmod(name, 0o700, dir_fd=top)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for child in os.listdir(folder):
            if _is_folder(folder, child):
                with contextlib.suppress(PermissionError):
                    os.chmod(child, 0o700, dir_fd=folder)
                moved += 1
                os.rename(child, f".roost-sweep-{os.getpid()}-{moved}", src_dir_fd=folder, dst_dir_fd=top)
            else:
                os.unlink(child, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)
    return moved


def _is_folder(folder: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
