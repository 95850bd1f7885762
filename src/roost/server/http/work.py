"""What a compatible client wants to be executed or completed (spec/execution.md §2, §4)."""

from typing import Any

import msgspec

from roost.server.http.params import BatchOptions, CompletionOptions, check
from roost.wire.errors import InvalidParameters
from roost.wire.runs import BatchStages

STARTING = ("query", "batch")
ANSWERING = ("input", "user-input")
MODES = (*STARTING, "continue", *ANSWERING, "complete")


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One request, checked."""

    mode: str
    run_id: str | None
    code: str
    """A snippet, a line of input, or for `complete` what stands before the cursor."""
    batch: BatchStages | None = None


def read_work(body: Any) -> Work:
    """The body of `POST /session/{ref}`.

    Raises:
        InvalidParameters: names what is missing or wrong.
    """
    if not isinstance(body, dict):
        raise InvalidParameters("the body must be a JSON object")
    if body.keys() == {"code", "options"}:  # as the SDKs of official clients ask for completions
        return Work(mode="complete", run_id=None, code=read_completed(body))
    if "runId" not in body:
        raise InvalidParameters("runId is missing", hint="send null to let the server choose one")
    run_id, mode = body["runId"], _mode(body.get("mode"), MODES)
    if not run_id and mode not in (*STARTING, "complete"):
        raise InvalidParameters(
            f"mode {mode} needs the runId of a run", hint="the one that its start was answered with"
        )
    if not isinstance(run_id, str | None):
        raise InvalidParameters("runId must be a text or null")
    if mode == "complete":
        return Work(mode=mode, run_id=None, code=read_completed(body))
    options = _options(body)
    batch = read_batch(options) if mode == "batch" else None
    return Work(mode=mode, run_id=run_id, code=_code(body), batch=batch)


def read_start(start: Any) -> Work:
    """The first message of a streamed execution (§7).

    Raises:
        InvalidParameters: names what is missing or wrong.
    """
    if not isinstance(start, dict):
        raise InvalidParameters("the first message must be an object with `code` and `mode`")
    mode = _mode(start.get("mode"), STARTING)
    options = _options(start)
    batch = read_batch(options) if mode == "batch" else None
    return Work(mode=mode, run_id=None, code=_code(start), batch=batch)


def read_batch(options: dict[str, Any]) -> BatchStages:
    """The stages of a batch run; an empty command skips its stage (§4.2)."""
    asked = check(options, BatchOptions)
    return BatchStages(clean=asked.clean or None, build=asked.build or None, exec=asked.exec or None)


def read_completed(body: Any) -> str:
    """What stands before the cursor in a request for completions (§4.4)."""
    if not isinstance(body, dict):
        raise InvalidParameters("the body must be a JSON object")
    code, options = _code(body), check(_options(body), CompletionOptions)
    if options.line:
        return options.line
    # Official SDKs send row and column 0 where their caller named no cursor; nothing stands before that one.
    if options.row is None or options.col is None or options.row == options.col == 0:
        return code
    lines = code.split("\n")
    if options.row >= len(lines):
        raise InvalidParameters(f"row {options.row} is behind the {len(lines)} lines of the code")
    return "\n".join([*lines[: options.row], lines[options.row][: options.col]])


def _mode(mode: Any, modes: tuple[str, ...]) -> str:
    if not mode:
        raise InvalidParameters("mode is missing or empty", hint=f"one of {', '.join(modes)}")
    if mode not in modes:
        raise InvalidParameters(f"mode {mode!r:.80} is not available", hint=f"one of {', '.join(modes)}")
    return str(mode)


def _code(body: dict[str, Any]) -> str:
    code = body.get("code")
    if not isinstance(code, str | None):
        raise InvalidParameters("code must be a text or null")
    return code or ""


def _options(body: dict[str, Any]) -> dict[str, Any]:
    options = body.get("options")
    if not isinstance(options, dict | None):
        raise InvalidParameters("options must be an object or null")
    return options or {}
