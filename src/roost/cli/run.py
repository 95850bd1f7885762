"""`run`: code, files and parameter sweeps, in sessions that are made for them."""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import click
import msgspec

from roost.cli.connection import connected
from roost.cli.options import (
    creation_arguments,
    name_option,
    owner_option,
    placement_options,
    resource_options,
    skipped,
)
from roost.cli.output import EXPECTED, fail, is_compatible, note, print_failure
from roost.cli.places import AnyPlace, OwnPlace, Place, remote_name
from roost.cli.pretty import print_done
from roost.cli.screen import Running, Screen
from roost.cli.shell import language_of
from roost.cli.stats import print_stats
from roost.cli.sweeps import Combination, RangeType, Stages, combine
from roost.client.config import local_cache_path
from roost.client.handle import SessionSettings
from roost.wire.runs import RunEnd

INTERRUPTED = 130
NO_PROGRAM = "provide the command-line code snippet with -c, or files"

WITHOUT_QUERIES = frozenset(
    [
        "c",
        "cpp",
        "gcc",
        "go",
        "golang",
        "haskell",
        "java",
        "julia",
        "lua",
        "node",
        "nodejs",
        "octave",
        "perl",
        "php",
        "r",
        "ruby",
        "rust",
    ]
)
"""Languages whose code runs from files alone (spec/execution.md §4.2)."""

MakePlace = Callable[[str | None, Combination], Place]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done in each session."""

    code: str | None
    files: tuple[Path, ...]
    basedir: Path | None
    is_batch: bool
    stats: bool
    quiet: bool
    is_chatty: bool
    """Whether each step is told, as `backend.ai` does."""


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `run` has in both commands."""
    options = (
        click.option("-c", "--code", help="Code to run."),
        click.option("--clean", help="Shell command that cleans up first; `-` skips it.", metavar="CMD"),
        click.option("--build", help="Shell command that builds; `-` skips it.", metavar="CMD"),
        click.option("--exec", "exec_", help="Shell command that executes; `-` skips it.", metavar="CMD"),
        click.option("--basedir", type=click.Path(exists=True, file_okay=False, path_type=Path)),
        click.option("--rm", "remove", is_flag=True, help="End the session afterwards, also after a failure."),
        click.option("-s", "--stats", is_flag=True, help="Show what the session used, when it is ended."),
        click.option("-q", "--quiet", is_flag=True, help="Hide progress."),
        click.option("--env-range", "env_ranges", type=RangeType(), multiple=True, help="Values for $NAME in -e."),
        click.option("--build-range", "build_ranges", type=RangeType(), multiple=True, help="The same in --build."),
        click.option("--exec-range", "exec_ranges", type=RangeType(), multiple=True, help="The same in --exec."),
        click.option("--max-parallel", type=click.IntRange(min=1), default=2, show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("image")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@name_option
@run_options
@resource_options
@click.pass_context
def run(ctx: click.Context, /, image: str, files: tuple[Path, ...], name: str | None, **options: Any) -> None:
    """Run code in a session of IMAGE and exit as it does.

    All FILES are copied into the session. Without -c, the first of them is the program; with --clean, --build or --exec
    these commands are run instead, and the image's own way of what is not given. So are files of languages that are
    compiled. With --name the session is kept.
    """
    code = options["code"]
    is_batch = any(options[stage] is not None for stage in ("clean", "build", "exec_"))
    is_batch = is_batch or (code is None and bool(files) and language_of(image) in WITHOUT_QUERIES)
    if code is None and not files and not is_batch:
        raise click.UsageError("nothing to run: pass -c CODE or a file")
    if code is None and not is_batch:
        code = _read_program(files[0])
    keep = name is not None
    arguments = creation_arguments(options)

    def make(name: str | None, combination: Combination) -> Place:
        settings = SessionSettings(
            env=combination.env,
            resources=arguments["resources"],
            resource_opts=arguments["resource_opts"],
            bootstrap_script=arguments["bootstrap_script"],
            tag=arguments["tag"],
        )
        return OwnPlace(
            name, image, settings, keep=keep, remove=options["remove"], on_wait=lambda why: note(f"waiting: {why}")
        )

    plan = _plan(options, code, files, is_batch)
    ctx.exit(_run_all(plan, _combinations(options), options["max_parallel"], make, name))


@click.command("run")
@click.argument("image")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@name_option
@owner_option
@run_options
@placement_options
@resource_options
@click.option("--terminal", is_flag=True, help="Not there; use the shell of `roost`.")
@click.pass_context
def compatible_run(
    ctx: click.Context, /, image: str, files: tuple[Path, ...], name: str | None, terminal: bool, **options: Any
) -> None:
    """Run code, or commands on FILES, in a session of IMAGE and exit as it does.

    FILES are copied into the session; then --clean, --build and --exec are run, each in the image's own way if not
    given. The session is kept, except with --rm.
    """
    if terminal:
        raise fail("--terminal is not available", hint="`roost shell NAME` is an interactive session")
    if (options["code"] is None) == (not files):
        raise fail(NO_PROGRAM if not files else "either files or -c can be run, not both")
    arguments = creation_arguments(options)
    combinations = _combinations(options)
    base = name or f"pysdk-{secrets.token_hex(5)}"
    plan = _plan(options, options["code"], files, bool(files))
    with connected() as api:

        def make(name: str | None, combination: Combination) -> Place:
            return AnyPlace(api, name or base, image, combination, arguments, remove=options["remove"])

        status = _run_all(plan, combinations, options["max_parallel"], make, base)
    ctx.exit(status)


def _plan(options: dict[str, Any], code: str | None, files: tuple[Path, ...], is_batch: bool) -> Plan:
    basedir = options["basedir"]
    for file in files if basedir is not None else ():
        try:
            remote_name(file, basedir)
        except ValueError:
            raise click.BadParameter(f"{file} does not lie beneath {basedir}", param_hint="FILES") from None
    return Plan(
        code=code,
        files=files,
        basedir=basedir,
        is_batch=is_batch,
        stats=options["stats"],
        quiet=options["quiet"],
        is_chatty=is_compatible() and not options["quiet"],
    )


def _combinations(options: dict[str, Any]) -> list[Combination]:
    stages = Stages(
        **{
            stage: skipped(options[key] if options[key] is not None else "*")
            for stage, key in (("clean", "clean"), ("build", "build"), ("exec", "exec_"))
        }
    )
    ranges = {key: options[key] for key in ("env_ranges", "build_ranges", "exec_ranges")}
    try:
        return combine(dict(options["envs"]), stages, **ranges)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _read_program(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{file} cannot be read as a program: {error}", param_hint="FILES") from None


def _run_all(
    plan: Plan, combinations: Sequence[Combination], max_parallel: int, make: MakePlace, name: str | None
) -> int:
    """The exit code: that of the one run, or of the first that failed."""
    if len(combinations) == 1:
        place = make(name, combinations[0])
        status = _run_one(plan, combinations[0], place, Screen(quiet=plan.quiet), lambda run: None)
        if plan.stats and place.stats is not None:
            print_stats(place.stats)
        return status
    return _Sweep(plan, max_parallel, make, name or f"roost-{secrets.token_hex(5)}").run(combinations)


def _run_one(
    plan: Plan, combination: Combination, place: Place, screen: Screen, on_start: Callable[[Running], None]
) -> int:
    with place:
        if plan.files:
            place.upload(plan.files, plan.basedir)
            if plan.is_chatty:
                screen.progress(f"uploaded {len(plan.files)} files")
        end: RunEnd | None = None
        if plan.is_batch:
            running = place.start_batch(combination.stages)
            on_start(running)
            end = screen.follow(running)
        if plan.code is not None and (end is None or end.exit_code == 0):
            running = place.start(plan.code)
            on_start(running)
            end = screen.follow(running)
    if end is None:
        raise AssertionError("a plan has code or is a batch")
    screen.tell_end(end)
    if place.stats is not None and plan.is_chatty:
        screen.progress("ended the session")
    return end.exit_code


class _Sweep:
    """Many combinations, as many at a time as is allowed, each in a session and with log files of its own.

    Nobody answers their prompts: there is one keyboard, and threads that wait for it could not be ended.
    """

    def __init__(self, plan: Plan, max_parallel: int, make: MakePlace, name: str) -> None:
        self._plan = plan
        self._max_parallel = max_parallel
        self._make = make
        self._name = name
        self._running: dict[int, Running] = {}
        self._stopped = False

    def run(self, combinations: Sequence[Combination]) -> int:
        """Run them all; the exit code of the first that failed, in their order."""
        codes: dict[int, int] = {}
        with ThreadPoolExecutor(self._max_parallel, thread_name_prefix="sweep") as pool:
            waiting = {pool.submit(self._one, at, one): at for at, one in enumerate(combinations, start=1)}
            while waiting:
                try:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt:
                    self._stop(waiting)
                    continue
                for future in done:
                    at = waiting.pop(future)
                    codes[at] = self._told(at, combinations[at - 1], future)
        return next((codes[at] for at in sorted(codes) if codes[at]), 0)

    def _one(self, at: int, combination: Combination) -> tuple[int, Place]:
        name = f"{self._name}-{at}"
        with _log_files(name) as (stdout, stderr):
            screen = Screen(stdout, stderr, asks=False)
            place = self._make(name, combination)

            def started(running: Running) -> None:
                self._running[at] = running
                if self._stopped:
                    running.interrupt()

            try:
                return _run_one(self._plan, combination, place, screen, started), place
            finally:
                self._running.pop(at, None)

    def _stop(self, waiting: dict[Future[tuple[int, Place]], int]) -> None:
        self._stopped = True
        for future in waiting:
            future.cancel()
        for running in list(self._running.values()):
            try:
                running.interrupt()
            except EXPECTED as error:  # the others are to be told all the same
                print_failure(error)

    def _told(self, at: int, combination: Combination, future: Future[tuple[int, Place]]) -> int:
        name = f"{self._name}-{at}"
        if future.cancelled():
            return INTERRUPTED
        chosen = " ".join(f"{key}={value}" for key, value in combination.chosen.items())
        if (error := future.exception()) is not None:
            if not isinstance(error, Exception):
                raise error
            print_failure(error, about=f"{name} ({chosen})")
            return 1
        code, place = future.result()
        if not self._plan.quiet:
            line = f"{name} ({chosen}) ended with exit code {code}; its output is in {log_path(name, 'stdout')}"
            if is_compatible():
                print_done(line)
            else:
                note(line)
        if self._plan.stats and place.stats is not None:
            print_stats(place.stats)
        return code


def log_path(name: str, stream: str) -> Path:
    """Where the output of one session of a sweep goes."""
    return local_cache_path / "client-logs" / f"{name}.{stream}.log"


@contextlib.contextmanager
def _log_files(name: str) -> Iterator[tuple[Any, Any]]:
    log_path(name, "stdout").parent.mkdir(parents=True, exist_ok=True)
    with log_path(name, "stdout").open("w") as stdout, log_path(name, "stderr").open("w") as stderr:
        yield stdout, stderr
