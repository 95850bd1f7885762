"""Unpacks what sessions send: their content is not to be trusted.

`tarfile`'s own data filter is missing in Python 3.11 before 3.11.4, which Debian ships.
"""

import errno
import io
import shutil
import tarfile
import warnings
from pathlib import Path, PurePosixPath
from typing import IO

import aiohttp

from roost.client.exceptions import BackendClientError

HOME = PurePosixPath("/home/work")
"""A session's home, as its programs see it."""


def inside_home(path: str) -> PurePosixPath:
    """A path in a session, relative to its home where it is in there.

    Raises:
        BackendClientError: it has a part `..`, which no server follows, and the HTTP library would.
    """
    given = PurePosixPath(path)
    if ".." in given.parts:
        raise BackendClientError(f"{path} leads out of {HOME}")
    return given.relative_to(HOME) if given.is_relative_to(HOME) else given


async def read_parts(raw: aiohttp.ClientResponse) -> list[bytes]:
    """The parts of a multipart answer.

    Raises:
        BackendClientError: it is none, or broken.
    """
    if not raw.content_type.startswith("multipart/"):
        raise BackendClientError(f"expected archives, but the server sent {raw.content_type}")
    parts = []
    try:
        reader = aiohttp.MultipartReader.from_response(raw)
        while (part := await reader.next()) is not None:
            if not isinstance(part, aiohttp.BodyPartReader):
                raise BackendClientError("the answer holds a multipart within a multipart")
            content = io.BytesIO()
            while chunk := await part.read_chunk(1 << 16):
                content.write(chunk)
            parts.append(content.getvalue())
    except (ValueError, aiohttp.ClientPayloadError) as error:
        raise BackendClientError(f"the answer is broken: {error}") from error
    return parts


def extract(archive: bytes, dest: Path) -> list[str]:
    """Unpack a tar below `dest`, and return the names in it. Nothing is written if anything in it is refused.

    Links that lead outside of `dest`, as those of a virtual environment do, are left out with a warning, and so is what
    would have a longer path than this system takes.

    Raises:
        BackendClientError: it is no tar, or something in it would lie outside of `dest`.
    """
    return _unpack(io.BytesIO(archive), dest)


def _unpack(archive: IO[bytes], dest: Path, strip: int = 0) -> list[str]:
    written = set()
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            members = []
            for member in tar.getmembers():
                _check(member)
                member.name = PurePosixPath(*PurePosixPath(member.name).parts[strip:]).as_posix()
                if _leads_outside(member):
                    warnings.warn(f"the link {member.name!r} leads outside, and was left out", stacklevel=3)
                else:
                    members.append(member)
            # Links come last, so nothing is ever written through one that the archive brought.
            for member in sorted(members, key=tarfile.TarInfo.issym):
                try:
                    _write(tar, member, dest)
                    written.add(member)
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    shown = f"{member.name[:100]}…"
                    warnings.warn(f"the path {shown!r} is too long here, and was left out", stacklevel=3)
    except (tarfile.TarError, OSError) as error:
        raise BackendClientError(f"the archive was not unpacked: {error}") from error
    return [member.name for member in members if member in written]


def place(content: IO[bytes], local: Path, is_folder: bool, within: Path | None = None) -> list[str]:
    """Put what was downloaded where it belongs: a file, or a tar of one folder, whose content lies in `local` then.

    A file takes its name when all of it is there.

    Returns:
        the names of what was written, relative to `within`, else to the folder of `local`.

    Raises:
        BackendClientError: as `extract` does, and where `local` would lie outside of `within`.
    """
    base = within if within is not None else local.parent
    if within is not None:
        _check(tarfile.TarInfo(local.relative_to(within).as_posix()))
        _check_parents(local, within)
    local.parent.mkdir(parents=True, exist_ok=True)
    if is_folder:
        return [(local / name).relative_to(base).as_posix() for name in _unpack(content, local, strip=1)]
    making = local.with_name(f".{local.name}.part")
    with making.open("wb") as file:
        shutil.copyfileobj(content, file)
    making.replace(local)
    return [local.relative_to(base).as_posix()]


def _check(member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise BackendClientError(f"the archive holds {member.name!r}, which lies outside")
    if not (member.isreg() or member.isdir() or member.issym()):
        raise BackendClientError(f"the archive holds {member.name!r}, which is neither file, folder nor symbolic link")


def _leads_outside(member: tarfile.TarInfo) -> bool:
    if not member.issym():
        return False
    # Only leading `..` are allowed: after a name, which may be another link, they could lead anywhere.
    target = PurePosixPath(member.linkname)
    ups = sum(part == ".." for part in target.parts)
    leads_up_first = all(part == ".." for part in target.parts[:ups])
    return target.is_absolute() or not leads_up_first or ups >= len(PurePosixPath(member.name).parts)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, dest: Path) -> None:
    path = dest / member.name
    _check_parents(path, dest)
    if member.isdir():
        if path.is_symlink():
            raise BackendClientError(f"{path} is a link; nothing is written through it")
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.is_file():
        path.unlink()
    if member.issym():
        path.symlink_to(member.linkname)
        return
    content = tar.extractfile(member)
    assert content is not None
    with path.open("xb") as file:
        shutil.copyfileobj(content, file)
    path.chmod(member.mode & 0o755 | 0o600)


def _check_parents(path: Path, dest: Path) -> None:
    for parent in path.parents:
        if parent == dest:
            return
        if parent.is_symlink():
            raise BackendClientError(f"{parent} is a link; nothing is written through it")
