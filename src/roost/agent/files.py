"""A session's files, reached from outside without ever leaving its home.

Every path is resolved by the kernel, `openat2` beneath the home and through no link, so that neither a hostile link
nor a race leads out.
"""

import asyncio
import contextlib
import ctypes
import errno
import io
import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from roost.runtimes.base import HOME
from roost.wire.agent import SessionFiles
from roost.wire.errors import FileNotFoundInSession, Forbidden, InvalidParameters, LimitExceeded
from roost.wire.sandboxes import FileInfo

_OPENAT2 = 437
_BENEATH, _NO_SYMLINKS, _NO_MAGICLINKS = 0x08, 0x04, 0x02
_Entries = list[FileInfo]
_Waiting = list[tuple[PurePosixPath, PurePosixPath]]
_libc = ctypes.CDLL(None, use_errno=True)


class HomeFiles(SessionFiles):
    """The files below one home folder. What it writes belongs to the session's uid."""

    def __init__(self, home: Path, uid: int | None) -> None:
        self._home = home
        self._uid = uid

    async def list(self, path: str = ".") -> list[FileInfo]:
        return await asyncio.to_thread(self._list, _relative(path))

    async def read(self, path: str, *, max_bytes: int) -> bytes:
        return await asyncio.to_thread(self._read, _relative(path), max_bytes)

    async def write(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(self._write, _relative(path), content)

    async def archive(self, path: str, *, max_bytes: int) -> bytes:
        return await asyncio.to_thread(self._archive, _relative(path), max_bytes)

    def _list(self, path: PurePosixPath) -> _Entries:
        with self._open(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
            entries = []
            for name in sorted(os.listdir(folder)):
                with contextlib.suppress(FileNotFoundError):  # gone since
                    entries.append(_info(name, os.stat(name, dir_fd=folder, follow_symlinks=False)))
            return entries

    def _read(self, path: PurePosixPath, max_bytes: int) -> bytes:
        with self._open(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidParameters(f"{path} is not a regular file")
            return _read_all(descriptor, max_bytes, path)

    def _write(self, path: PurePosixPath, content: bytes) -> None:
        if not path.parts:
            raise InvalidParameters("the name of a file is missing")
        self._make_folders(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        with self._open(path, flags, 0o644) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidParameters(f"{path} is not a regular file")
            self._give(descriptor)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]

    def _make_folders(self, path: PurePosixPath) -> None:
        made = PurePosixPath()
        for part in path.parts:
            with self._open(made, os.O_RDONLY | os.O_DIRECTORY) as parent:
                try:
                    os.mkdir(part, dir_fd=parent)
                except FileExistsError:
                    made /= part
                    continue
            made /= part
            with self._open(made, os.O_RDONLY | os.O_DIRECTORY) as folder:
                self._give(folder)

    def _archive(self, path: PurePosixPath, max_bytes: int) -> bytes:
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w") as archive:
            self._add(archive, path, PurePosixPath(path.name or "work"), max_bytes, output)
        return output.getvalue()

    def _add(
        self, archive: tarfile.TarFile, path: PurePosixPath, name: PurePosixPath, max_bytes: int, output: io.BytesIO
    ) -> None:
        """Add one entry and, without recursion into Python's stack, everything below it."""
        waiting = [(path, name)]
        while waiting:
            path, name = waiting.pop()
            with self._open(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
                status = os.fstat(descriptor)
                member = _member(str(name), status)
                if stat.S_ISDIR(status.st_mode):
                    archive.addfile(member)
                    for child in sorted(os.listdir(descriptor), reverse=True):
                        self._queue(archive, descriptor, child, path, name, waiting)
                elif stat.S_ISREG(status.st_mode):
                    content = _read_all(descriptor, max_bytes, path)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            if output.tell() > max_bytes:
                raise LimitExceeded(f"the archive of {path} is longer than {max_bytes} bytes")

    def _queue(
        self,
        archive: tarfile.TarFile,
        folder: int,
        child: str,
        path: PurePosixPath,
        name: PurePosixPath,
        waiting: _Waiting,
    ) -> None:
        status = os.stat(child, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            member = _member(str(name / child), status)
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(child, dir_fd=folder)
            archive.addfile(member)
        elif stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
            waiting.append((path / child, name / child))

    @contextlib.contextmanager
    def _open(self, path: PurePosixPath, flags: int, mode: int = 0) -> Iterator[int]:
        home = os.open(self._home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = _open_beneath(home, str(path), flags, mode)
        finally:
            os.close(home)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _give(self, descriptor: int) -> None:
        if self._uid is not None:
            os.fchown(descriptor, self._uid, self._uid)


def _relative(path: str) -> PurePosixPath:
    """A user's path as one below the home; what leads out by its text alone is refused here."""
    if "\0" in path:
        raise InvalidParameters("a path may not contain a null byte")
    pure = PurePosixPath(path)
    if pure.is_absolute():
        try:
            pure = pure.relative_to(HOME)
        except ValueError:
            raise Forbidden(f"{path} is outside of {HOME}") from None
    if ".." in pure.parts:
        raise Forbidden(f"{path} leads out of {HOME}")
    return pure


def _open_beneath(folder: int, path: str, flags: int, mode: int) -> int:
    resolve = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
    how = struct.pack("QQQ", flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, resolve)
    descriptor = int(_libc.syscall(_OPENAT2, folder, os.fsencode(path), how, len(how)))
    if descriptor >= 0:
        return descriptor
    number = ctypes.get_errno()
    if number in (errno.ENOENT, errno.ENOTDIR):
        raise FileNotFoundInSession(f"there is no {path} in the session", hint="list its files first")
    if number in (errno.ELOOP, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EAGAIN):
        raise Forbidden(f"{path} cannot be reached: {os.strerror(number)}", hint="links are not followed")
    raise InvalidParameters(f"{path} cannot be opened: {os.strerror(number)}")


def _read_all(descriptor: int, max_bytes: int, path: PurePosixPath) -> bytes:
    chunks = []
    size = 0
    while chunk := os.read(descriptor, 1 << 18):
        size += len(chunk)
        if size > max_bytes:
            raise LimitExceeded(f"{path} is longer than {max_bytes} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _info(name: str, status: os.stat_result) -> FileInfo:
    return FileInfo(
        filename=name,
        mode=stat.filemode(status.st_mode),
        size=status.st_size,
        ctime=status.st_ctime,
        mtime=status.st_mtime,
        atime=status.st_atime,
    )


def _member(name: str, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    member.uname = member.gname = "work"
    member.uid = member.gid = 1000
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    return member
