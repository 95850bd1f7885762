"""The files that an upload is of."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from roost.client.exceptions import ArgumentError

MAX_UPLOAD_FILES = 20
MAX_UPLOAD_BYTES = (1 << 20) - 1
"""What servers that are not ours take at once."""


def files_to_upload(files: Iterable[str | Path], base: Path) -> list[tuple[Path, str]]:
    """Each file to send, with its name in the session."""
    found: list[tuple[Path, str]] = []
    for file in files:
        path = Path(file).resolve()
        if not (path.is_relative_to(base) and path.exists()) and (base / file).exists():
            path = (base / file).resolve()
        if not path.is_relative_to(base):
            raise ArgumentError(f"{file} does not lie beneath {base}")
        inside = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
        found.extend((entry, entry.relative_to(base).as_posix()) for entry in inside)
    if not found:
        raise ArgumentError("there are no files to upload")
    return found


def beyond_limits(found: Sequence[tuple[Path, str]]) -> str | None:
    """What keeps these files from being sent as one form, if anything does."""
    if len(found) > MAX_UPLOAD_FILES:
        return f"{len(found)} files at once; at most {MAX_UPLOAD_FILES} are allowed"
    large = next((remote for path, remote in found if path.stat().st_size > MAX_UPLOAD_BYTES), None)
    return None if large is None else f"{large} is longer than {MAX_UPLOAD_BYTES} bytes"
