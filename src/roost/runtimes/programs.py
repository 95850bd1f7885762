"""Programs that session uids execute, wherever the administrator keeps them."""

import hashlib
import os
import shutil
import stat
from pathlib import Path


def first_closed(path: Path) -> Path | None:
    """The first of a path's folders, or itself, that an unrelated uid may not pass or read; None where it may all."""
    path = path.resolve()
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    wanted = stat.S_IXOTH if path.is_dir() else stat.S_IROTH | stat.S_IXOTH
    return path if path.stat().st_mode & wanted != wanted else None


def install_program(program: Path, folder: Path) -> Path:
    """Copy a program below `<folder>/<content hash>/`, executable by every uid, if it is not there yet.

    A wheel's libraries lie beside its package, where the program looks for them from its own place; so they come along.
    """
    package = program.parent.parent
    files = [program, *sorted(Path(f"{package}.libs").glob("*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    target = folder / digest
    if not target.exists():
        making = folder / f"{digest}.{os.getpid()}"
        for path in files:
            _copy(path, making / path.relative_to(package.parent), folder)
        try:
            making.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(making)
    return target / program.relative_to(package.parent)


def _copy(path: Path, copy: Path, top: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    copy.chmod(0o755)
    for made in copy.parents:
        made.chmod(0o755)
        if made == top:
            return
