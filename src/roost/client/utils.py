"""Bars that show how far a transfer is (spec/client-sdk.md §10)."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

__all__ = ("ProgressReportingReader",)


class ProgressBar(Protocol):
    """What a transfer tells of its bytes; bars of `tqdm` are such."""

    def update(self, n: int) -> Any:
        """So many more have passed."""


class _NoBar:
    def update(self, n: int) -> None:
        pass


@contextlib.contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[ProgressBar]:
    """A bar on stderr while the block runs; where stderr is no terminal, or `total` is None, there is nothing to see.

    Args:
        total: bytes; 0 where nobody knows.
    """
    if total is None or not sys.stderr.isatty():
        yield _NoBar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(label, total=total or None)

        class Bar:
            def update(self, n: int) -> None:
                shown.advance(task, n)

        yield Bar()


class ProgressReportingReader(io.BufferedReader):
    """A file that is read while a bar advances by what was read. Closing it closes the bar that it made itself."""

    def __init__(self, file_path: str | Path, *, tqdm_instance: ProgressBar | None = None) -> None:
        path = Path(file_path)
        self._opened = contextlib.ExitStack()
        self._bar = tqdm_instance
        super().__init__(io.FileIO(path, "rb"))
        if self._bar is None:
            self._bar = self._opened.enter_context(progress_bar(path.name, path.stat().st_size))

    def close(self) -> None:
        super().close()
        self._opened.close()

    def read(self, size: int | None = -1, /) -> bytes:
        return self._told(super().read(size))

    def read1(self, size: int = -1, /) -> bytes:
        return self._told(super().read1(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._told(super().readline(size))

    def readinto(self, buffer: Any, /) -> int:
        return self._counted(super().readinto(buffer))

    def readinto1(self, buffer: Any, /) -> int:
        return self._counted(super().readinto1(buffer))

    def _told(self, data: bytes) -> bytes:
        self._counted(len(data))
        return data

    def _counted(self, n: int) -> int:
        if self._bar is not None:
            self._bar.update(n)
        return n
