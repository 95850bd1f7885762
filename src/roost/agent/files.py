"""A session's files, reached from outside without ever leaving its home.

Every path is resolved by the kernel, `openat2` beneath the home and through no link, so that neither a hostile link
nor a race leads out.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import stat
import struct
import tarfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import ParamSpec, TypeVar

from roost.runtimes.base import HOME
from roost.wire.agent import OpenFile, SessionFiles
from roost.wire.errors import FileNotFoundInSession, Forbidden, InvalidParameters, LimitExceeded
from roost.wire.sandboxes import FileInfo

_OPENAT2 = 437
_BENEATH, _NO_SYMLINKS, _NO_MAGICLINKS = 0x08, 0x04, 0x02
TAR_BATCH = 1 << 16
"""About as many bytes of an archive are handed over at a time."""
_LONGEST_PATH = 4095
"""Bytes of a path that Linux takes: PATH_MAX without the null byte at its end."""
_Entries = list[FileInfo]
_Waiting = list[tuple[PurePosixPath, PurePosixPath]]
P = ParamSpec("P")
R = TypeVar("R")
_libc = ctypes.CDLL(None, use_errno=True)


class HomeFiles(SessionFiles):
    """The files below one home folder. What it writes belongs to the session's uid."""

    def __init__(self, home: Path, uid: int | None) -> None:
        self._home = home
        self._uid = uid

    async def list(self, path: str = ".") -> list[FileInfo]:
        return await _reach(path, self._list, _relative(path))

    async def read(self, path: str, *, max_bytes: int) -> bytes:
        return await _reach(path, self._read, _relative(path), max_bytes)

    async def write(self, path: str, content: bytes) -> None:
        await _reach(path, self._write, _relative(path), content)

    async def archive(self, path: str, *, max_bytes: int) -> bytes:
        return await _reach(path, self._archive, _relative(path), max_bytes)

    async def info(self, path: str) -> FileInfo:
        return await _reach(path, self._stat, _relative(path))

    @contextlib.asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[OpenFile]:
        relative = _relative(path)
        with contextlib.ExitStack() as opened:
            flags = os.O_RDONLY | os.O_NONBLOCK
            descriptor = await _reach(path, opened.enter_context, self._open(relative, flags))
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidParameters(f"{relative} is not a regular file")
            yield _HomeFile(descriptor, _info(relative.name, status))

    async def store(self, path: str, content: AsyncIterator[bytes]) -> bool:
        upload = await _reach(path, self._create, _relative(path))
        try:
            async for piece in content:
                await _reach(path, upload.write, piece)
            return await _reach(path, upload.finish)
        finally:
            await asyncio.to_thread(upload.close)

    async def remove(self, path: str) -> None:
        await _reach(path, self._remove, _relative(path))

    async def tar(self, path: str) -> AsyncIterator[bytes]:
        pieces = self._tar(_relative(path))
        try:
            while batch := await asyncio.to_thread(_take, pieces, TAR_BATCH):
                yield batch
        finally:
            await asyncio.to_thread(pieces.close)

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
        output = bytearray()
        for piece in self._tar(path):
            output += piece
            if len(output) > max_bytes:
                raise LimitExceeded(
                    f"the archive of {path} is longer than {max_bytes} bytes",
                    hint="GET …/files/{path} has no limit",
                )
        return bytes(output)

    def _tar(self, path: PurePosixPath) -> Generator[bytes, None, None]:
        """An archive piece by piece: a header and its content for each entry, deep ones without recursion."""
        waiting = [(path, PurePosixPath(path.name or "work"))]
        yield from self._tar_entry(waiting)
        while waiting:
            with contextlib.suppress(FileNotFoundInSession):  # gone since
                yield from self._tar_entry(waiting)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _tar_entry(self, waiting: _Waiting) -> Iterator[bytes]:
        path, name = waiting.pop()
        with self._open(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            status = os.fstat(descriptor)
            member = _member(str(name), status)
            if stat.S_ISREG(status.st_mode):
                member.size = status.st_size
                yield _header(member)
                yield from _content(descriptor, status.st_size)
            elif stat.S_ISDIR(status.st_mode):
                yield _header(member)
                for child in sorted(os.listdir(descriptor), reverse=True):
                    if (link := _look(descriptor, child, path, name, waiting)) is not None:
                        yield _header(link)

    def _stat(self, path: PurePosixPath) -> FileInfo:
        with self._open(path, os.O_PATH) as descriptor:
            return _info(path.name, os.fstat(descriptor))

    def _create(self, path: PurePosixPath) -> "_Upload":
        if not path.parts:
            raise InvalidParameters("the name of a file is missing")
        self._make_folders(path.parent)
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(self._open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
            name = f".roost-upload-{os.urandom(6).hex()}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o644, dir_fd=folder)
            opened.callback(os.close, descriptor)
            self._give(descriptor)
            return _Upload(folder, name, descriptor, path.name, opened.pop_all())

    def _remove(self, path: PurePosixPath) -> None:
        if not path.parts:
            raise Forbidden("the home itself cannot be removed")
        with self._open(path.parent, os.O_RDONLY | os.O_DIRECTORY) as folder:
            try:
                if stat.S_ISDIR(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.rmdir(path.name, dir_fd=folder)
                else:
                    os.unlink(path.name, dir_fd=folder)
            except FileNotFoundError:
                raise FileNotFoundInSession(f"there is no {path} in the session", hint="list its files first") from None

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


class _HomeFile(OpenFile):
    def __init__(self, descriptor: int, info: FileInfo) -> None:
        self._descriptor = descriptor
        self.info = info

    async def read(self, offset: int, size: int) -> bytes:
        return await asyncio.to_thread(os.pread, self._descriptor, size, offset)


class _Upload:
    """A file under a name of ours, until all of it is there."""

    def __init__(self, folder: int, name: str, descriptor: int, final_name: str, opened: contextlib.ExitStack) -> None:
        self._folder = folder
        self._name: str | None = name
        self._descriptor = descriptor
        self._final_name = final_name
        self._opened = opened

    def write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def finish(self) -> bool:
        """Give it its name; whether that was free."""
        assert self._name is not None
        is_new = True
        with contextlib.suppress(FileNotFoundError):
            os.stat(self._final_name, dir_fd=self._folder, follow_symlinks=False)
            is_new = False
        os.rename(self._name, self._final_name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._name = None
        return is_new

    def close(self) -> None:
        if self._name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._folder)
        self._opened.close()


async def _reach(path: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do some work on files, which may block; what the system refuses is told as an error of ours."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        sentence = f"{path} cannot be reached, read or written: {error.strerror}"
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundInSession(sentence, hint="list its files first") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise LimitExceeded(sentence, hint="remove files, or ask for more space") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Forbidden(sentence, hint="change its mode, in the session") from error
        raise InvalidParameters(sentence) from error


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
        why = f": {os.strerror(number)}" if number == errno.ENOTDIR else ""
        raise FileNotFoundInSession(f"there is no {path} in the session{why}", hint="list its files first")
    if number in (errno.ELOOP, errno.EXDEV, errno.EAGAIN):
        raise Forbidden(f"{path} cannot be reached: {os.strerror(number)}", hint="links are not followed")
    raise OSError(number, os.strerror(number))


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")


def _content(descriptor: int, size: int) -> Iterator[bytes]:
    """Exactly as many bytes as the header said, and padding; what a file lacks since then is zeros."""
    rest = size
    while rest and (chunk := os.read(descriptor, min(rest, TAR_BATCH))):
        rest -= len(chunk)
        yield chunk
    while rest:
        zeros = bytes(min(rest, TAR_BATCH))
        rest -= len(zeros)
        yield zeros
    yield bytes(-size % tarfile.BLOCKSIZE)


def _look(
    folder: int, child: str, path: PurePosixPath, name: PurePosixPath, waiting: _Waiting
) -> tarfile.TarInfo | None:
    """Queue a file or folder; a link is an entry at once. What has too long a path is left out."""
    # By its path nobody could reach it, in the session or where the archive is unpacked.
    if len(os.fsencode(path / child)) > _LONGEST_PATH:
        return None
    try:
        status = os.stat(child, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            member = _member(str(name / child), status)
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(child, dir_fd=folder)
            return member
    except FileNotFoundError:  # gone since
        return None
    if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
        waiting.append((path / child, name / child))
    return None


def _take(pieces: Iterator[bytes], size: int) -> bytes:
    """Pieces of about this size together; empty at the end."""
    batch = bytearray()
    for piece in pieces:
        batch += piece
        if len(batch) >= size:
            break
    return bytes(batch)


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
