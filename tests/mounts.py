"""Mounts by system call: a minimal machine has no program for them."""

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS = 0x00020000
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 1 << 18
_DETACH = 2


def mount_tmpfs(target: Path, size: str) -> None:
    """A file system in memory of this size, such as `24m`."""
    _check(_libc.mount(b"roost-test", bytes(target), b"tmpfs", 0, f"size={size},mode=711".encode()))


def bind(source: Path, target: Path) -> None:
    """Show one folder in another's place."""
    _check(_libc.mount(bytes(source), bytes(target), None, _BIND, None))


def unmount(target: Path) -> None:
    """Detach at once; what is still open goes on until it is closed."""
    _check(_libc.umount2(bytes(target), _DETACH))


def leave_the_hosts_mounts() -> None:
    """Give the calling process mounts of its own, which nobody else sees."""
    _check(_libc.unshare(_NEWNS))
    _check(_libc.mount(None, b"/", None, _REC | _PRIVATE, None))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
