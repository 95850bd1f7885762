"""The habits of notebooks without IPython: `!command` and `%magic` lines.

Loaded for code that is not Python: a line of these kinds never is, so whatever compiles is left alone.
"""

from __future__ import annotations

import builtins
import os
import re
import shlex
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_NAME = "__roost_magics__"
_SHELL = re.compile(r"(?P<before>\s*)!(?P<rest>.+)")
_LINES = re.compile(r"(?P<before>\s*[^\W\d][\w.\[\]'\", ]*=\s*)!(?P<rest>.+)")
_MAGIC = re.compile(r"(?P<before>\s*(?:[^\W\d][\w.]*\s*=\s*)?)%(?P<name>[^\W\d]\w*)(?:\s+(?P<rest>.*))?")
_CELL = re.compile(r"%%(?P<name>[^\W\d]\w*)[ \t]*(?P<rest>[^\n]*)\n?(?P<body>.*)", re.DOTALL)
_EXPRESSION = re.compile(r"\{([^{}]+)\}|\$(\w+)")
_SHELL_PROGRAM = "/bin/sh"
_TIMEIT_S = 0.2


def rewritten(code: str) -> str | None:
    """The same code as Python, line for line; None where nothing in it is a command or magic."""
    cell = _CELL.fullmatch(code.lstrip("\n"))
    if cell is not None:
        return f"{_NAME}.cell({cell['name']!r}, {cell['rest']!r}, {cell['body']!r})"
    lines = code.split("\n")
    changed = [_line(line) for line in lines]
    return "\n".join(changed) if changed != lines else None


def _line(line: str) -> str:
    for pattern, method in ((_SHELL, "shell"), (_LINES, "lines")):
        found = pattern.fullmatch(line)
        if found is not None:
            return f"{found['before']}{_NAME}.{method}({found['rest']!r})"
    found = _MAGIC.fullmatch(line)
    if found is not None:
        return f"{found['before']}{_NAME}.magic({found['name']!r}, {found['rest'] or ''!r})"
    return line


class UsageError(Exception):
    """A magic was used in a way that it does not have."""


class Magics:
    """What rewritten code calls."""

    def __init__(self, namespace: dict[str, Any], evaluate: Callable[[str], Any]) -> None:
        """
        Args:
            namespace: the variables of the kernel.
            evaluate: executes code of more than a line as a run does; answers with its last value.
        """
        self._namespace = namespace
        self._evaluate = evaluate
        self._lines: dict[str, Callable[[str], Any]] = {
            "cd": self._cd,
            "pwd": lambda _rest: os.getcwd(),
            "env": self._env,
            "time": self._time,
            "timeit": self._timeit,
            "pip": self._pip,
            "matplotlib": lambda _rest: None,  # figures are shown where they are made, whatever the backend
        }
        self._cells: dict[str, Callable[[str, str], Any]] = {
            "time": lambda _rest, body: self._time(body),
            "timeit": lambda rest, body: self._timeit(rest + "\n" + body if rest else body),
            "bash": lambda _rest, body: self._script("bash", body),
            "sh": lambda _rest, body: self._script("sh", body),
        }

    def shell(self, command: str) -> None:
        """Run a command; its exit code is in `_exit_code`."""
        self._namespace["_exit_code"] = self._run([_SHELL_PROGRAM, "-c", self._expanded(command)])

    def lines(self, command: str) -> list[str]:
        """Run a command and answer with the lines of its output."""
        import subprocess

        argv = [_SHELL_PROGRAM, "-c", self._expanded(command)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._namespace["_exit_code"] = done.returncode
        return done.stdout.decode("utf-8", "replace").splitlines()

    def magic(self, name: str, rest: str) -> Any:
        """A line magic: ours, or IPython's where that is installed."""
        ours = self._lines.get(name)
        if ours is not None:
            return ours(rest.strip())
        return _ipython(self._namespace, "%" + name).run_line_magic(name, rest)

    def cell(self, name: str, rest: str, body: str) -> Any:
        """A cell magic."""
        ours = self._cells.get(name)
        if ours is not None:
            return ours(rest.strip(), body)
        return _ipython(self._namespace, "%%" + name).run_cell_magic(name, rest, body)

    def _expanded(self, command: str) -> str:
        """`{expression}` and `$name` by what they stand for in Python; everything else is the shell's."""

        def value(found: Any) -> str:
            expression, name = found.groups()
            if name is not None:
                return str(self._namespace[name]) if name in self._namespace else str(found.group())
            try:
                return str(eval(expression, self._namespace))  # noqa: S307 - the user's own code
            except Exception:
                return str(found.group())

        return _EXPRESSION.sub(value, command)

    def _run(self, argv: list[str], source: str | None = None) -> int:
        import signal
        import subprocess

        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        stdin = subprocess.DEVNULL if source is None else subprocess.PIPE
        # A group of its own, so that an interrupt reaches what the shell has started.
        process = subprocess.Popen(argv, stdin=stdin, start_new_session=True)
        try:
            process.communicate(None if source is None else source.encode())
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
        return process.returncode

    def _script(self, program: str, body: str) -> None:
        code = self._run([program], body)
        self._namespace["_exit_code"] = code
        if code:
            raise UsageError(f"the {program} script ended with {code}")

    def _cd(self, rest: str) -> None:
        os.chdir(os.path.expanduser(self._expanded(rest) or "~"))
        _say(os.getcwd())

    def _env(self, rest: str) -> Any:
        if not rest:
            return dict(os.environ)
        name, equals, value = rest.partition("=")
        if not equals:
            name, _, value = rest.partition(" ")
            if not value:
                return os.environ.get(name)
        os.environ[name.strip()] = self._expanded(value.strip())
        return None

    def _time(self, code: str) -> Any:
        before, began = os.times(), time.perf_counter()
        try:
            return self._evaluate(code)
        finally:
            wall, after = time.perf_counter() - began, os.times()
            user, system = after.user - before.user, after.system - before.system
            _say(f"CPU times: user {_human(user)}, sys: {_human(system)}, total: {_human(user + system)}")
            _say(f"Wall time: {_human(wall)}")

    def _timeit(self, code: str) -> None:
        import statistics
        import timeit

        loops, repeats, code = _timeit_options(code)
        timer = timeit.Timer(code, globals=self._namespace)
        if not loops:
            loops = 1
            while timer.timeit(loops) < _TIMEIT_S:
                loops *= 10
        each = [spent / loops for spent in timer.repeat(repeats, loops)]
        spread = statistics.pstdev(each)
        times = f"{_human(statistics.mean(each))} ± {_human(spread)} per loop"
        _say(f"{times} (mean ± std. dev. of {repeats} runs, {loops} loops each)")

    def _pip(self, rest: str) -> None:
        import importlib
        import site

        for name, value in (("PIP_USER", "1"), ("PIP_BREAK_SYSTEM_PACKAGES", "1")):
            os.environ.setdefault(name, value)
        code = self._run([sys.executable, "-m", "pip", *shlex.split(self._expanded(rest))])
        packages = site.getusersitepackages()
        if packages not in sys.path and os.path.isdir(packages):
            site.addsitedir(packages)
        importlib.invalidate_caches()
        if code and _has_no_pip():
            raise UsageError("there is no pip in this image; name the package where the image is built")
        if code:
            raise UsageError(f"pip ended with {code}")


def install(namespace: dict[str, Any], evaluate: Callable[[str], Any]) -> None:
    """Make what rewritten code calls known; a second time changes nothing."""
    if not hasattr(builtins, _NAME):
        setattr(builtins, _NAME, Magics(namespace, evaluate))


def _ipython(namespace: dict[str, Any], magic: str) -> Any:
    try:
        from IPython.core.interactiveshell import InteractiveShell  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UsageError(f"there is no {magic} here; IPython, which may have it, is not installed") from None
    hooks = sys.displayhook, sys.excepthook
    shell = InteractiveShell.instance(user_module=sys.modules["__main__"], user_ns=namespace)
    sys.displayhook, sys.excepthook = hooks
    return shell


def _timeit_options(code: str) -> tuple[int, int, str]:
    loops, repeats = 0, 7
    while True:
        found = re.match(r"-(?P<option>[nr])\s*(?P<count>\d+)\s*", code)
        if found is None:
            return loops, max(1, repeats), code
        if found["option"] == "n":
            loops = int(found["count"])
        else:
            repeats = int(found["count"])
        code = code[found.end() :]


def _has_no_pip() -> bool:
    import importlib.util

    return importlib.util.find_spec("pip") is None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _human(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
