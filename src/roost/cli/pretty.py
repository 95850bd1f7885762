"""Status lines for people (spec/cli.md §1, client-sdk.md §14.6): a mark and a sentence, on stderr."""

import enum
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import IO, Any

import click

from roost.client.exceptions import BackendAPIError

__all__ = (
    "PrintStatus",
    "bold",
    "inverse",
    "italic",
    "print_done",
    "print_error",
    "print_fail",
    "print_info",
    "print_pretty",
    "print_wait",
    "print_warn",
    "show_warning",
    "underline",
)

MAX_CANDIDATES = 10


class PrintStatus(enum.Enum):
    """What a line tells of."""

    NONE = 0
    WAITING = 1
    DONE = 2
    FAILED = 3
    WARNING = 4


_MARKS = {
    PrintStatus.NONE: ("∙", "cyan"),
    PrintStatus.WAITING: ("⋯", "yellow"),
    PrintStatus.DONE: ("✔", "green"),
    PrintStatus.FAILED: ("✘", "red"),
    PrintStatus.WARNING: ("∙", "yellow"),
}


def bold(text: str) -> str:
    return click.style(text, bold=True, reset=False) + "\x1b[22m"


def italic(text: str) -> str:
    return click.style(text, italic=True, reset=False) + "\x1b[23m"


def underline(text: str) -> str:
    return click.style(text, underline=True, reset=False) + "\x1b[24m"


def inverse(text: str) -> str:
    return click.style(text, reverse=True, reset=False) + "\x1b[27m"


def print_pretty(msg: str, *, status: PrintStatus = PrintStatus.NONE, file: IO[str] | None = None) -> None:
    """Print a line with the mark of its status; colours only on a terminal."""
    mark, colour = _MARKS[status]
    click.echo(f"{click.style(mark, fg=colour)} {msg}", file=file if file is not None else sys.stderr)


def print_info(msg: str, *, file: IO[str] | None = None) -> None:
    print_pretty(msg, file=file)


def print_wait(msg: str, *, file: IO[str] | None = None) -> None:
    print_pretty(msg, status=PrintStatus.WAITING, file=file)


def print_done(msg: str, *, file: IO[str] | None = None) -> None:
    print_pretty(msg, status=PrintStatus.DONE, file=file)


def print_warn(msg: str, *, file: IO[str] | None = None) -> None:
    print_pretty(msg, status=PrintStatus.WARNING, file=file)


def print_fail(msg: str, *, file: IO[str] | None = None) -> None:
    print_pretty(msg, status=PrintStatus.FAILED, file=file)


def print_error(exc: BaseException, *, file: IO[str] | None = None) -> None:
    """Print what an error says; of one that nobody expected, where it came from too."""
    if isinstance(exc, BackendAPIError):
        for line in lines_of(exc):
            print_fail(line, file=file)
        return
    print_fail(f"{type(exc).__name__}: {exc}", file=file)
    if not isinstance(exc, click.ClickException | OSError | ValueError):
        traceback.print_exception(exc, file=file)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as such a line; for `warnings.showwarning`."""
    print_warn(f"{category.__name__}: {message}", file=file)


def warn_prettily() -> None:
    """Have warnings printed as lines of ours."""
    warnings.showwarning = show_warning


def lines_of(error: BackendAPIError) -> list[str]:
    """What a server's refusal says, line by line (spec/cli.md §1)."""
    problem = error.data if isinstance(error.data, dict) else {}
    title = problem.get("title") or "the server gave no reason"
    lines = [f"{type(error).__name__}: {error.status} {error.reason} - {title}"]
    data, slug = problem.get("data"), str(problem.get("type", "")).rpartition("/")[2]
    if msg := problem.get("msg"):
        lines.append(f"- {msg}")
    match slug, data:
        case "too-many-sessions-matched", {"matches": [*matches]}:
            lines.extend(_candidate(one) for one in matches[:MAX_CANDIDATES])
        case "session-already-exists", {"existingSessionId": existing}:
            lines.append(f"- existing session: {existing}")
        case "invalid-api-params", {**faults} if faults:
            lines.extend(f"- {name}: {fault}" for name, fault in faults.items())
        case "graphql-error", {"errors": [*errors]} | [*errors]:
            lines.extend(f"- {_message(one)}" for one in errors)
        case _:
            pass
    if hint := problem.get("hint"):  # servers of ours say what to do next
        lines.append(f"- {hint}")
    return lines


def _candidate(match: Any) -> str:
    told: Iterable[str] = (str(match.get(key, "")) for key in ("id", "name", "status", "created_at"))
    return "- " + "  ".join(filter(None, told))


def _message(error: Any) -> Any:
    return error.get("message", error) if isinstance(error, dict) else error
