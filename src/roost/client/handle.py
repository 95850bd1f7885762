"""Handles on single sessions: `roost.session()` and `roost.async_session()`.

```python
with roost.session("class-7") as s:
    s.run("x = 20")
    print(s.run("x + 1").text)
```
"""

import asyncio
import binascii
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from roost.client.api import Api, Target, find_target, session_path
from roost.client.errors import NotUnderstood
from roost.client.worker import Worker
from roost.wire.errors import InvalidParameters, NotFound, RoostError, SessionNotRunning
from roost.wire.ids import SESSION_NAME, new_run_id
from roost.wire.mime import PLAIN
from roost.wire.reasons import Reason
from roost.wire.runs import Cost, Event, EventKind, InterruptOutcome, RunEnd, RunStatus

__all__ = ("AsyncRun", "AsyncSessionHandle", "Result", "Run", "SessionHandle", "async_session", "session")

T = TypeVar("T")

AnswerPrompt = Callable[[str, bool], str | None]
"""Answers a prompt, given its text and whether it asks for a password; None is end-of-file."""


OnWait = Callable[[str], None]

WAIT_SLICE_S = 2
"""How long one request waits for a session to start; then its reason is looked at."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave."""

    text: str
    """The last expression's value, else what was written to stdout."""
    stdout: str
    stderr: str
    """What was written there; the traceback of an exception that nobody caught is part of it."""
    exit_code: int
    status: RunStatus
    reason: Reason | None = None
    cost: Cost = Cost()
    display: list[dict[str, str]] = []
    """What was displayed, the last expression's value included: for each the contents by MIME type, images in base64.
    An update has taken the place of what it updates."""

    @property
    def html(self) -> str | None:
        """The last HTML that was displayed."""
        return self._last("text/html")

    @property
    def png(self) -> bytes | None:
        """The last PNG image that was displayed."""
        content = self._last("image/png")
        try:
            return None if content is None else binascii.a2b_base64(content)
        except ValueError as error:
            raise NotUnderstood(f"not an image in base64: {content!r:.100}") from error

    def _last(self, mime: str) -> str | None:
        return next((bundle[mime] for bundle in reversed(self.display) if mime in bundle), None)


def session(
    name: str | None = None,
    image: str = "python",
    keep: bool = False,
    *,
    target: Target | None = None,
    on_wait: OnWait | None = None,
) -> "SessionHandle":
    """A session by name, made if there is none; ends with the `with` block unless it was there before or is kept.

    Args:
        on_wait: is told why the session cannot start yet, each reason once.
    """
    return SessionHandle(name, image, keep, target=target, on_wait=on_wait)


def async_session(
    name: str | None = None,
    image: str = "python",
    keep: bool = False,
    *,
    target: Target | None = None,
    on_wait: OnWait | None = None,
) -> "AsyncSessionHandle":
    """The same for `async with`."""
    return AsyncSessionHandle(name, image, keep, target=target, on_wait=on_wait)


class AsyncSessionHandle:
    """One session."""

    def __init__(
        self,
        name: str | None,
        image: str,
        keep: bool,
        *,
        target: Target | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        self.name = _checked_name(name)
        self.image = image
        self.id = ""
        """The session's id; known inside the block."""
        self.existed = False
        """Whether it was there before."""
        self._keep = keep
        self._target = target
        self._on_wait = on_wait or (lambda sentence: None)
        self._api: Api | None = None

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as opened:
            target = self._target if self._target is not None else await asyncio.to_thread(find_target)
            api = await opened.enter_async_context(Api(target))
            self.id, self.existed = await self._create(api)
            self._opened = opened.pop_all()
        self._api = api
        return self

    async def _create(self, api: Api) -> tuple[str, bool]:
        """The session's id once it runs, and whether it was there before."""
        created, told = False, ""
        try:
            while True:
                body = (await api.call("POST", "/session", body=creation_body(self.name, self.image))).body
                identifier, existed = read_creation(body)
                created = created or not existed
                if not is_waiting(body):
                    return identifier, not created
                sentence = str((body.get("reason") or {}).get("sentence") or "")
                if sentence and sentence != told:
                    told = sentence
                    self._on_wait(sentence)
        except BaseException:
            if created:  # nobody will use what still waits
                path = session_path(self.name)
                with contextlib.suppress(RoostError):
                    await api.call("DELETE", path, params={"forced": "true"})
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            if not (self._keep or self.existed):
                await self.destroy()
        finally:
            self._api = None
            await self._opened.aclose()

    @property
    def api(self) -> Api:
        if self._api is None:
            raise RuntimeError("use this inside its `with` block")
        return self._api

    async def run(self, code: str, *, answer: AnswerPrompt | Iterable[str] | None = None) -> Result:
        """Run code and wait for its end.

        Args:
            answer: what to answer to `input()`: a function, or the lines themselves. Where nothing is left to
                answer, `input()` raises `EOFError`.
        """
        return await (await self.start(code)).result(answer=answer)

    async def start(self, code: str, *, run_id: str | None = None, echo: bool = True) -> "AsyncRun":
        """Start a run. With the same id and code it is the same run, however often this is called.

        Args:
            echo: whether the last expression's value is a `result`.
        """
        body = start_body(run_id or new_run_id(), code, echo)
        answer = await self.api.call("POST", session_path(self.id, "runs"), body=body, repeat=True)
        return AsyncRun(self, str(answer.body["run_id"]))

    def get_run(self, run_id: str) -> "AsyncRun":
        """A run that was started before, perhaps by somebody else."""
        return AsyncRun(self, run_id)

    async def upload(self, local: str | Path, remote: str | None = None) -> None:
        """Copy a file of this machine into the session, or a folder with all that it holds.

        It keeps its own name, if no other is given.
        """
        path = Path(local)
        name = remote or path.resolve().name
        if not path.is_dir():
            await self.api.put_file(self.id, name, path)
            return
        for inner in sorted(path.rglob("*")):
            if inner.is_file():
                await self.api.put_file(self.id, f"{name}/{inner.relative_to(path).as_posix()}", inner)

    async def download(self, remote: str, local: str | Path | None = None) -> Path:
        """Copy a file or folder of the session to this machine; into the working folder, if nothing else is said."""
        path = Path(local) if local is not None else Path(Path(remote).name)
        await self.api.get_file(self.id, remote, path)
        return path

    async def restart(self) -> None:
        """Start the session's sandbox anew: variables and processes are gone, its files are kept."""
        # Once more after a lost connection: whoever waits for it has started nothing that a second time could end.
        await self.api.call("PATCH", session_path(self.id), repeat=True)

    async def destroy(self) -> None:
        """End the session; it may have ended already."""
        with contextlib.suppress(NotFound):
            await self.api.call("DELETE", session_path(self.id), repeat=True)


class AsyncRun:
    """One run."""

    def __init__(self, handle: AsyncSessionHandle, run_id: str) -> None:
        self.id = run_id
        self._handle = handle
        self._prompt: int | None = None

    async def events(self, after: int = 0) -> AsyncGenerator[Event, None]:
        """Its events with a seq above `after`, each once, up to its `end`, across lost connections."""
        stream = self._handle.api.events(self._handle.id, self.id, after)
        async with contextlib.aclosing(stream):
            async for event in stream:
                self._prompt = waiting_prompt(event, self._prompt)
                yield event

    async def result(self, *, answer: AnswerPrompt | Iterable[str] | None = None) -> Result:
        """Wait for its end, answering its prompts (see `AsyncSessionHandle.run`)."""
        ask = _asker(answer)
        events = []
        async with contextlib.aclosing(self.events()) as stream:
            async for event in stream:
                events.append(event)
                if event.kind is EventKind.PROMPT:
                    await self.input(ask(event.data.get("text", ""), bool(event.data.get("password"))))
        return result_of(events)

    async def input(self, text: str | None, *, prompt: int | None = None) -> None:
        """Answer a prompt: the given one, else the last one seen. None is end-of-file."""
        number = prompt if prompt is not None else self._prompt
        await self._handle.api.call(
            "POST", self._path("input"), body=input_body(number, text), repeat=number is not None
        )

    async def interrupt(self) -> InterruptOutcome:
        """Tell it to stop."""
        answer = await self._handle.api.call("POST", self._path("interrupt"))
        try:
            return InterruptOutcome(answer.body["outcome"])
        except (KeyError, TypeError, ValueError) as error:
            raise NotUnderstood(f"not an outcome of an interrupt: {answer.body!r}") from error

    async def info(self) -> Any:
        """Its summary: state, status, exit code, reason, cost, times."""
        return (await self._handle.api.call("GET", self._path())).body

    def _path(self, *more: str) -> str:
        return session_path(self._handle.id, "runs", self.id, *more)


class SessionHandle:
    """One session, for code that waits; every method does what the one of `AsyncSessionHandle` does."""

    def __init__(
        self,
        name: str | None,
        image: str,
        keep: bool,
        *,
        target: Target | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        self._handle = AsyncSessionHandle(name, image, keep, target=target, on_wait=on_wait)
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

    def run(self, code: str, *, answer: AnswerPrompt | Iterable[str] | None = None) -> Result:
        return self.start(code).result(answer=answer)

    def start(self, code: str, *, run_id: str | None = None, echo: bool = True) -> "Run":
        return Run(self.worker, self.worker.call(self._handle.start(code, run_id=run_id, echo=echo)))

    def get_run(self, run_id: str) -> "Run":
        return Run(self.worker, self._handle.get_run(run_id))

    def upload(self, local: str | Path, remote: str | None = None) -> None:
        self.worker.call(self._handle.upload(local, remote))

    def download(self, remote: str, local: str | Path | None = None) -> Path:
        return self.worker.call(self._handle.download(remote, local))

    def restart(self) -> None:
        self.worker.call(self._handle.restart())

    def destroy(self) -> None:
        self.worker.call(self._handle.destroy())


class Run:
    """One run, for code that waits."""

    def __init__(self, worker: Worker, run: AsyncRun) -> None:
        self.id = run.id
        self._worker = worker
        self._run = run

    def events(self, after: int = 0) -> Iterator[Event]:
        return self._worker.iterate(self._run.events(after))

    def result(self, *, answer: AnswerPrompt | Iterable[str] | None = None) -> Result:
        # Prompts are answered here, in the caller's thread: whoever is asked may want to wait for a person.
        ask = _asker(answer)
        events = []
        for event in self.events():
            events.append(event)
            if event.kind is EventKind.PROMPT:
                self.input(ask(event.data.get("text", ""), bool(event.data.get("password"))))
        return result_of(events)

    def input(self, text: str | None, *, prompt: int | None = None) -> None:
        self._worker.call(self._run.input(text, prompt=prompt))

    def interrupt(self) -> InterruptOutcome:
        return self._worker.call(self._run.interrupt())

    def info(self) -> Any:
        return self._worker.call(self._run.info())


def creation_body(name: str, image: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "type": "interactive",
        "reuseIfExists": True,
        "maxWaitSeconds": WAIT_SLICE_S,
        "config": {},
    }


def read_creation(body: Any) -> tuple[str, bool]:
    """The session's id, and whether it was there before."""
    try:
        identifier, created, status = str(body["sessionId"]), bool(body.get("created", True)), body.get("status")
    except (KeyError, TypeError, AttributeError) as error:
        raise NotUnderstood(f"the server's answer names no session: {body!r}") from error
    if status not in (None, "RUNNING") and not is_waiting(body):
        reason = body.get("reason") or {}
        sentence = reason.get("sentence") or f"it is {status}"
        raise SessionNotRunning(
            f"the session did not start: {sentence}", hint=reason.get("hint") or f"`roost why {identifier}` tells more"
        )
    return identifier, not created


def is_waiting(body: Any) -> bool:
    """Whether the session that a creation answered with may still start."""
    return body.get("status") in ("TIMEOUT", "PENDING", "SCHEDULED", "PREPARING", "PULLING", "RESTARTING")


def start_body(run_id: str, code: str, echo: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"run_id": run_id, "mode": "query", "code": code}
    return body if echo else {**body, "options": {"echo": False}}


def input_body(prompt: int | None, text: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "eof": True} if text is None else {"prompt": prompt, "text": text}


def waiting_prompt(event: Event, before: int | None) -> int | None:
    """The number of the prompt that waits after this event."""
    if event.kind is EventKind.PROMPT:
        return int(event.data["prompt"])
    return None if event.kind in (EventKind.INPUT, EventKind.END) else before


def result_of(events: Iterable[Event]) -> Result:
    """Sum up a run's events.

    Raises:
        NotUnderstood: its `end` is missing or cannot be read.
    """
    written: dict[EventKind, list[str]] = {EventKind.STDOUT: [], EventKind.STDERR: []}
    value: str | None = None
    display: list[tuple[str | None, dict[str, str]]] = []
    end: RunEnd | None = None
    for event in events:
        match event.kind:
            case EventKind.STDOUT | EventKind.STDERR:
                written[event.kind].append(str(event.data))
            case EventKind.RESULT:
                value = str(event.data.get("text", ""))
                display.append((None, {PLAIN: value, **event.data.get("mime", {})}))
            case EventKind.DISPLAY:
                display = _with_display(display, event.data)
            case EventKind.END:
                end = read_end(event)
            case _:
                pass
    if end is None:
        raise NotUnderstood("the run's events stop before its end")
    stdout = "".join(written[EventKind.STDOUT])
    return Result(
        text=value if value is not None else stdout,
        stdout=stdout,
        stderr="".join(written[EventKind.STDERR]),
        exit_code=end.exit_code,
        status=end.status,
        reason=end.reason,
        cost=end.cost,
        display=[bundle for _, bundle in display],
    )


def _with_display(
    display: list[tuple[str | None, dict[str, str]]], data: dict[str, Any]
) -> list[tuple[str | None, dict[str, str]]]:
    identifier, bundle = data.get("display_id"), dict(data.get("mime", {}))
    if data.get("update") and any(one == identifier for one, _ in display):
        return [(one, bundle if one == identifier else before) for one, before in display]
    return [*display, (identifier, bundle)]


def read_end(event: Event) -> RunEnd:
    try:
        return msgspec.convert(event.data, RunEnd)
    except msgspec.ValidationError as error:
        raise NotUnderstood(f"the run's end cannot be read: {error}") from error


def _checked_name(name: str | None) -> str:
    if name is None:
        return f"roost-{secrets.token_hex(5)}"
    if not SESSION_NAME.fullmatch(name):
        raise InvalidParameters(
            f"not a session name: {name!r}", hint="4 to 64 letters, digits and underscores; dots and hyphens inside"
        )
    return name


def _asker(answer: AnswerPrompt | Iterable[str] | None) -> AnswerPrompt:
    if callable(answer):
        return answer
    lines = iter(() if answer is None else answer)
    return lambda text, password: next(lines, None)
