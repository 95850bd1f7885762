"""Handles on single sessions: `roost.async_session()`; the one for code that waits is in `blocking.py`."""

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from roost.client.api import Api, Target, find_target, session_path
from roost.client.errors import NotUnderstood
from roost.client.results import Result, result_of
from roost.wire.errors import InvalidParameters, NotFound, RoostError, SessionNotRunning
from roost.wire.ids import SESSION_NAME, new_run_id
from roost.wire.runs import BatchStages, Event, EventKind, InterruptOutcome

__all__ = ("AsyncRun", "AsyncSessionHandle", "SessionSettings", "async_session")

AnswerPrompt = Callable[[str, bool], str | None]
"""Answers a prompt, given its text and whether it asks for a password; None is end-of-file."""

OnStage = Callable[[str, int], None]
"""Is told that the stage `clean` or `build` has ended, and its exit code."""

OnWait = Callable[[str], None]

WAIT_SLICE_S = 2
"""How long one request waits for a session to start; then its reason is looked at."""


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a session is made with; nothing of it changes one that is there already."""

    env: Mapping[str, str] = {}
    """Environment variables of its programs."""
    resources: Mapping[str, str | int] = {}
    """Its slots, such as `{"cpu": 2, "mem": "1g"}`; the server's defaults where it says nothing."""
    resource_opts: Mapping[str, str] = {}
    """Such as `{"shmem": "64m"}`."""
    bootstrap_script: str | None = None
    """Run by `/bin/sh` once before the session is usable."""
    tag: str | None = None


def async_session(
    name: str | None = None,
    image: str = "python",
    keep: bool = False,
    *,
    settings: SessionSettings | None = None,
    target: Target | None = None,
    on_wait: OnWait | None = None,
) -> "AsyncSessionHandle":
    """`roost.session()` (`blocking.py`) for `async with`."""
    return AsyncSessionHandle(name, image, keep, settings=settings, target=target, on_wait=on_wait)


class AsyncSessionHandle:
    """One session."""

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
        self.name = _checked_name(name)
        self.image = image
        self.id = ""
        """The session's id; known inside the block."""
        self.existed = False
        """Whether it was there before."""
        self._keep = keep
        self._settings = settings or SessionSettings()
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
        asked = creation_body(self.name, self.image, self._settings)
        try:
            while True:
                once = {"Idempotency-Key": str(uuid.uuid4())}  # so that it may be sent again when its connection breaks
                body = (await api.call("POST", "/session", body=asked, headers=once, repeat=True)).body
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

    async def run(
        self, code: str, *, answer: AnswerPrompt | Iterable[str] | None = None, timeout_s: float | None = None
    ) -> Result:
        """Run code and wait for its end.

        Args:
            answer: what to answer to `input()`: a function, or the lines themselves. Where nothing is left to
                answer, `input()` raises `EOFError`.
            timeout_s: how long it may run, from its start on; then it ends with status `exec-timeout`.
        """
        return await (await self.start(code, timeout_s=timeout_s)).result(answer=answer)

    async def run_batch(
        self,
        clean: str | None = None,
        build: str | None = None,
        exec: str | None = None,
        *,
        on_stage: OnStage | None = None,
        answer: AnswerPrompt | Iterable[str] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Run shell commands one after the other, each in a process of its own, and wait for their end.

        A stage that is None is skipped, `*` is the language's own way. Where `build` fails `exec` is not run.

        Args:
            on_stage: is told the end of `clean` and of `build`, and their exit codes, as they come.
        """
        run = await self.start_batch(clean, build, exec, timeout_s=timeout_s)
        return await run.result(answer=answer, on_stage=on_stage)

    async def start(
        self, code: str, *, run_id: str | None = None, echo: bool = True, timeout_s: float | None = None
    ) -> "AsyncRun":
        """Start a run. With the same id and code it is the same run, however often this is called.

        Args:
            echo: whether the last expression's value is a `result`.
        """
        return await self._start(start_body(run_id or new_run_id(), code, echo, timeout_s))

    async def start_batch(
        self,
        clean: str | None = None,
        build: str | None = None,
        exec: str | None = None,
        *,
        run_id: str | None = None,
        timeout_s: float | None = None,
    ) -> "AsyncRun":
        """Start a batch run (see `run_batch`)."""
        stages = BatchStages(clean=clean, build=build, exec=exec)
        return await self._start(batch_body(run_id or new_run_id(), stages, timeout_s))

    async def _start(self, body: Mapping[str, Any]) -> "AsyncRun":
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

    async def complete(self, text: str) -> list[str]:
        """What could follow this code, its cursor at the end; nothing where the image's language cannot tell."""
        answer = await self.api.call("POST", session_path(self.id, "complete"), body=completion_body(text), repeat=True)
        return read_completions(answer.body)

    async def restart(self) -> None:
        """Start the session's sandbox anew: variables and processes are gone, its files are kept."""
        # Once more after a lost connection: whoever waits for it has started nothing that a second time could end.
        await self.api.call("PATCH", session_path(self.id), repeat=True)

    async def destroy(self) -> dict[str, Any]:
        """End the session; it may have ended already. Gives what it used, as far as that is known."""
        try:
            answer = await self.api.call("DELETE", session_path(self.id), repeat=True)
        except NotFound:
            return {}
        return dict((answer.body or {}).get("stats") or {})


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

    async def result(
        self, *, answer: AnswerPrompt | Iterable[str] | None = None, on_stage: OnStage | None = None
    ) -> Result:
        """Wait for its end, answering its prompts (see `AsyncSessionHandle.run`)."""
        ask = asker(answer)
        events = []
        async with contextlib.aclosing(self.events()) as stream:
            async for event in stream:
                events.append(event)
                tell_stage(event, on_stage)
                if event.kind is EventKind.PROMPT:
                    await self.input(ask(event.data.get("text", ""), bool(event.data.get("password"))))
        return result_of(events)

    async def input(self, text: str | None, *, prompt: int | None = None) -> None:
        """Answer a prompt: the given one, else the last one seen. None is end-of-file."""
        number = prompt if prompt is not None else self._prompt
        await self._handle.api.call(
            "POST", self._path("input"), body=input_body(number, text), repeat=number is not None
        )

    async def interrupt(self, *, grace_s: float | None = None) -> InterruptOutcome:
        """Tell it to stop.

        Args:
            grace_s: wait so long for its end, and kill its interpreter then; None is to tell it and go on.
        """
        body = None if grace_s is None else {"grace_s": grace_s}
        answer = await self._handle.api.call("POST", self._path("interrupt"), body=body)
        try:
            return InterruptOutcome(answer.body["outcome"])
        except (KeyError, TypeError, ValueError) as error:
            raise NotUnderstood(f"not an outcome of an interrupt: {answer.body!r}") from error

    async def info(self) -> Any:
        """Its summary: state, status, exit code, reason, cost, times."""
        return (await self._handle.api.call("GET", self._path())).body

    def _path(self, *more: str) -> str:
        return session_path(self._handle.id, "runs", self.id, *more)


def creation_body(name: str, image: str, settings: SessionSettings) -> dict[str, Any]:
    """The parameters of a creation; what was not asked for is left out."""
    config = {"environ": settings.env, "resources": settings.resources, "resource_opts": settings.resource_opts}
    more = {"bootstrap_script": settings.bootstrap_script, "tag": settings.tag}
    return {
        "name": name,
        "image": image,
        "type": "interactive",
        "reuseIfExists": True,
        "maxWaitSeconds": WAIT_SLICE_S,
        "config": {key: dict(value) for key, value in config.items() if value},
        **{key: value for key, value in more.items() if value is not None},
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


def start_body(run_id: str, code: str, echo: bool, timeout_s: float | None = None) -> dict[str, Any]:
    options = ({} if echo else {"echo": False}) | ({} if timeout_s is None else {"timeout_s": timeout_s})
    body: dict[str, Any] = {"run_id": run_id, "mode": "query", "code": code}
    return {**body, "options": options} if options else body


def batch_body(run_id: str, stages: BatchStages, timeout_s: float | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"clean": stages.clean, "build": stages.build, "exec": stages.exec}
    if timeout_s is not None:
        options["timeout_s"] = timeout_s
    return {"run_id": run_id, "mode": "batch", "code": "", "options": options}


def completion_body(text: str) -> dict[str, Any]:
    """Asks for what could follow a text, its cursor at the end."""
    before, _, line = text.rpartition("\n")
    row = before.count("\n") + 1 if before or text.startswith("\n") else 0
    return {"code": text, "options": {"row": row, "col": len(line), "line": line, "post": ""}}


def read_completions(body: Any) -> list[str]:
    try:
        return [str(one) for one in body["result"]["completions"]]
    except (KeyError, TypeError) as error:
        raise NotUnderstood(f"not a list of completions: {body!r:.200}") from error


def input_body(prompt: int | None, text: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "eof": True} if text is None else {"prompt": prompt, "text": text}


def waiting_prompt(event: Event, before: int | None) -> int | None:
    """The number of the prompt that waits after this event."""
    if event.kind is EventKind.PROMPT:
        return int(event.data["prompt"])
    return None if event.kind in (EventKind.INPUT, EventKind.END) else before


def asker(answer: AnswerPrompt | Iterable[str] | None) -> AnswerPrompt:
    """Who answers prompts: a function, or lines in their order and then nobody."""
    if callable(answer):
        return answer
    lines = iter(() if answer is None else answer)
    return lambda text, password: next(lines, None)


def tell_stage(event: Event, on_stage: OnStage | None) -> None:
    """Tell of the end of a stage, if that is what the event is and somebody wants to know."""
    if event.kind is EventKind.STAGE and on_stage is not None:
        on_stage(str(event.data["stage"]), int(event.data["exit_code"]))


def _checked_name(name: str | None) -> str:
    if name is None:
        return f"roost-{secrets.token_hex(5)}"
    if not SESSION_NAME.fullmatch(name):
        raise InvalidParameters(
            f"not a session name: {name!r}", hint="4 to 64 letters, digits and underscores; dots and hyphens inside"
        )
    return name
