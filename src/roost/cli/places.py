"""Where `run` runs: sessions of our own servers, whose events are read, and those of any other, which are polled."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from roost.cli.screen import Running
from roost.cli.sweeps import Combination, Stages
from roost.client.blocking import session
from roost.client.handle import SessionSettings
from roost.wire.mime import PLAIN
from roost.wire.runs import Event, EventKind, InterruptOutcome, RunEnd, RunStatus

STAGES = {"clean-finished": "clean", "build-finished": "build"}
FINAL = {"finished": RunStatus.OK, "exec-timeout": RunStatus.EXEC_TIMEOUT}
TIMED_OUT = 124


class Place(ABC):
    """One session, made for one combination; `with` makes or finds it, and ends it unless it is kept."""

    stats: Mapping[str, Any] | None = None
    """What the session used, once it has ended."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *exc_info: object) -> None: ...

    @abstractmethod
    def upload(self, files: Sequence[Path], basedir: Path | None) -> None:
        """Copy files into the session, named relative to `basedir`."""

    @abstractmethod
    def start(self, code: str) -> Running:
        """Run a piece of code."""

    @abstractmethod
    def start_batch(self, stages: Stages) -> Running:
        """Run commands."""


class OwnPlace(Place):
    """A session of a server of ours. The last value of a piece of code is not shown."""

    def __init__(
        self, name: str | None, image: str, settings: SessionSettings, *, keep: bool, remove: bool, on_wait: Any
    ) -> None:
        self._handle = session(name, image, keep=True, settings=settings, on_wait=on_wait)
        self._remove = remove or not keep

    def __enter__(self) -> Self:
        self._handle.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self._remove:
                self.stats = self._handle.destroy()
        finally:
            self._handle.__exit__(*exc_info)

    def upload(self, files: Sequence[Path], basedir: Path | None) -> None:
        for file in files:
            self._handle.upload(file, remote_name(file, basedir) if basedir is not None else None)

    def start(self, code: str) -> Running:
        return self._handle.start(code, echo=False)

    def start_batch(self, stages: Stages) -> Running:
        return self._handle.start_batch(stages.clean, stages.build, stages.exec)


class AnyPlace(Place):
    """A session of any server that speaks the session API."""

    def __init__(
        self, api: Any, name: str, image: str, combination: Combination, arguments: Mapping[str, Any], *, remove: bool
    ) -> None:
        self._api = api
        self._asked = {**arguments, "name": name, "envs": combination.env}
        self._image = image
        self._remove = remove

    def __enter__(self) -> Self:
        self.session = self._api.ComputeSession.get_or_create(self._image, **self._asked)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._remove:
            self.stats = (self.session.destroy() or {}).get("stats")

    def upload(self, files: Sequence[Path], basedir: Path | None) -> None:
        self.session.upload(files, basedir=basedir or Path.cwd())

    def start(self, code: str) -> Running:
        return PolledRun(self.session, code=code, mode="query")

    def start_batch(self, stages: Stages) -> Running:
        opts = {"clean": stages.clean, "build": stages.build, "exec": stages.exec}
        return PolledRun(self.session, code="", mode="batch", opts=opts)


class PolledRun:
    """A run that is polled; its answers become the events that a server of ours would send."""

    def __init__(self, compute: Any, **start: Any) -> None:
        self._compute = compute
        self._id = uuid.uuid4().hex
        self._next: dict[str, Any] | None = compute.execute(self._id, **start)
        self._seq = 0
        self._prompts = 0

    def events(self, after: int = 0) -> Iterator[Event]:
        """What comes from now on; nothing that was given before is given again, whatever `after` says."""
        while True:
            result, self._next = self._next or self._compute.execute(self._id, "", mode="continue"), None
            for kind, data in self._read(result):
                self._seq += 1
                yield Event(self._seq, kind, data)
            if result["status"] in FINAL:
                return

    def input(self, text: str | None, *, prompt: int | None = None) -> None:
        """Answer its prompt. The API has no end-of-file: a program that cannot be answered is interrupted."""
        if text is None:
            self.interrupt()
        else:
            self._next = self._compute.execute(self._id, text, mode="input")

    def interrupt(self, *, grace_s: float | None = None) -> InterruptOutcome:
        self._compute.interrupt()
        return InterruptOutcome.SENT

    def _read(self, result: Mapping[str, Any]) -> Iterator[tuple[EventKind, Any]]:
        status = str(result["status"])
        for item in result.get("console") or ():
            yield read_item(item)
        for name, url in result.get("files") or ():
            yield EventKind.STDOUT, f"{name}: {url}\n"
        if status in STAGES:
            yield EventKind.STAGE, {"stage": STAGES[status], "exit_code": result.get("exitCode") or 0}
        elif status == "waiting-input":
            self._prompts += 1
            is_password = bool((result.get("options") or {}).get("is_password"))
            yield EventKind.PROMPT, {"prompt": self._prompts, "text": "", "password": is_password}
        elif status in FINAL:
            yield EventKind.END, msgspec.to_builtins(read_final(status, result.get("exitCode")))


def read_item(item: Sequence[Any]) -> tuple[EventKind, Any]:
    """A console item as an event; what is no stream is framed with its type."""
    kind, data = item[0], item[1] if len(item) > 1 else ""
    if kind in ("stdout", "stderr"):
        return EventKind(kind), str(data)
    if kind == "media" and isinstance(data, list) and len(data) == 2:
        kind, data = f"media {data[0]}", data[1]
        if str(data).startswith("data:"):  # nobody reads those
            data = f"({len(data)} characters)"
    return EventKind.DISPLAY, {"mime": {PLAIN: f"----- {kind} -----\n{data}\n----- end -----"}}


def read_final(status: str, exit_code: int | None) -> RunEnd:
    """How a run ended, as far as the API tells."""
    if status == "exec-timeout":
        return RunEnd(status=RunStatus.EXEC_TIMEOUT, exit_code=exit_code or TIMED_OUT)
    return RunEnd(status=RunStatus.EXITED if exit_code else RunStatus.OK, exit_code=exit_code or 0)


def remote_name(file: Path, basedir: Path) -> str:
    """A file's name in the session.

    Raises:
        ValueError: it does not lie beneath `basedir`.
    """
    return file.resolve().relative_to(basedir.resolve()).as_posix()
