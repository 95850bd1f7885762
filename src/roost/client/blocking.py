"""`roost.session()`: a session for code that waits. Each method does what its namesake in `handle.py` does.

```python
with roost.session("class-7") as s:
    s.run("x = 20")
    print(s.run("x + 1").text)
```
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from roost.client.api import Target
from roost.client.handle import (
    AnswerPrompt,
    AsyncRun,
    AsyncSessionHandle,
    OnStage,
    OnWait,
    SessionSettings,
    asker,
    tell_stage,
)
from roost.client.results import Result, result_of
from roost.client.worker import Worker
from roost.wire.runs import Event, EventKind, InterruptOutcome


def session(
    name: str | None = None,
    image: str = "python",
    keep: bool = False,
    *,
    settings: SessionSettings | None = None,
    target: Target | None = None,
    on_wait: OnWait | None = None,
) -> "SessionHandle":
    """A session by name, made if there is none; ends with the `with` block unless it was there before or is kept.

    Args:
        settings: what it is made with, if it is made.
        on_wait: is told why the session cannot start yet, each reason once.
    """
    return SessionHandle(name, image, keep, settings=settings, target=target, on_wait=on_wait)


class SessionHandle:
    """One session, for code that waits; every method does what the one of `AsyncSessionHandle` does."""

    def __init__(
        self,
        name: str | None,
        image: str,
        keep: bool,
        *,
        settings: SessionSettings | None = None,
        target: Target | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        self._handle = AsyncSessionHandle(name, image, keep, settings=settings, target=target, on_wait=on_wait)
        self._worker: Worker | None = None

    def __enter__(self) -> Self:
        self._worker = Worker()
        try:
            self._worker.call(self._handle.__aenter__())
        except BaseException:
            self._worker.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.worker.call(self._handle.__aexit__(*exc_info))
        finally:
            self.worker.stop()
            self._worker = None

    @property
    def name(self) -> str:
        return self._handle.name

    @property
    def id(self) -> str:
        return self._handle.id

    @property
    def existed(self) -> bool:
        return self._handle.existed

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("use this inside its `with` block")
        return self._worker

    def run(
        self, code: str, *, answer: AnswerPrompt | Iterable[str] | None = None, timeout_s: float | None = None
    ) -> Result:
        return self.start(code, timeout_s=timeout_s).result(answer=answer)

    def run_batch(
        self,
        clean: str | None = None,
        build: str | None = None,
        exec: str | None = None,
        *,
        on_stage: OnStage | None = None,
        answer: AnswerPrompt | Iterable[str] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        return self.start_batch(clean, build, exec, timeout_s=timeout_s).result(answer=answer, on_stage=on_stage)

    def start(
        self, code: str, *, run_id: str | None = None, echo: bool = True, timeout_s: float | None = None
    ) -> "Run":
        worker = self.worker
        started = self._handle.start(code, run_id=run_id, echo=echo, timeout_s=timeout_s)
        return Run(worker, worker.call(started))

    def start_batch(
        self,
        clean: str | None = None,
        build: str | None = None,
        exec: str | None = None,
        *,
        run_id: str | None = None,
        timeout_s: float | None = None,
    ) -> "Run":
        worker = self.worker
        started = self._handle.start_batch(clean, build, exec, run_id=run_id, timeout_s=timeout_s)
        return Run(worker, worker.call(started))

    def get_run(self, run_id: str) -> "Run":
        return Run(self.worker, self._handle.get_run(run_id))

    def upload(self, local: str | Path, remote: str | None = None) -> None:
        self.worker.call(self._handle.upload(local, remote))

    def download(self, remote: str, local: str | Path | None = None) -> Path:
        return self.worker.call(self._handle.download(remote, local))

    def complete(self, text: str) -> list[str]:
        return self.worker.call(self._handle.complete(text))

    def restart(self) -> None:
        self.worker.call(self._handle.restart())

    def destroy(self) -> dict[str, Any]:
        return self.worker.call(self._handle.destroy())


class Run:
    """One run, for code that waits."""

    def __init__(self, worker: Worker, run: AsyncRun) -> None:
        self.id = run.id
        self._worker = worker
        self._run = run

    def events(self, after: int = 0) -> Iterator[Event]:
        return self._worker.iterate(self._run.events(after))

    def result(self, *, answer: AnswerPrompt | Iterable[str] | None = None, on_stage: OnStage | None = None) -> Result:
        # Prompts are answered here, in the caller's thread: whoever is asked may want to wait for a person.
        ask = asker(answer)
        events = []
        for event in self.events():
            events.append(event)
            tell_stage(event, on_stage)
            if event.kind is EventKind.PROMPT:
                self.input(ask(event.data.get("text", ""), bool(event.data.get("password"))))
        return result_of(events)

    def input(self, text: str | None, *, prompt: int | None = None) -> None:
        self._worker.call(self._run.input(text, prompt=prompt))

    def interrupt(self, *, grace_s: float | None = None) -> InterruptOutcome:
        return self._worker.call(self._run.interrupt(grace_s=grace_s))

    def info(self) -> Any:
        return self._worker.call(self._run.info())
