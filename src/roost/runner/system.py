"""The few calls to Linux that the standard library does not have."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

_INT = struct.Struct("i")
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PF_EXITING = 0x4


def set_dumpable(dumpable: bool) -> None:
    """Whether others of our uid may look into this process (`/proc/<pid>/mem`, ptrace)."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def become_subreaper() -> None:
    """Orphans below us become our children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor of this process that is not in `keep`."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(4096))
    for number in numbers:
        if number not in keep:
            try:
                os.close(number)
            except OSError:
                pass


def unread(descriptor: int) -> int:
    """How many bytes a pipe or socket holds."""
    held: int = _INT.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_INT.size)))[0]
    return held


def start_time(pid: int) -> int:
    """Field 22 of `/proc/<pid>/stat`: tells two processes of one pid apart."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def parents() -> dict[int, int]:
    """The parent of each process that can be seen; of those that have ended too, until they are waited for."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                pass  # it is gone
    return found


def is_exiting(pid: int) -> bool:
    """Whether a process is on its way out, so that the kernel closes its descriptors; True also where nobody knows."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            flags = int(file.read().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return True
    return bool(flags & _PF_EXITING)


def boot_id() -> str:
    """This boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _prctl(option: int, value: int) -> None:
    # An interpreter without ctypes runs code all the same, only less protected.
    try:
        import ctypes
    except ImportError:
        return
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
