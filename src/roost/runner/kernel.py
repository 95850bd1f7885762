"""The Python kernel: a fork of the runner that executes runs in one namespace that lasts.

Nothing here is trusted by the runner: user code shares this process and may do to it what it likes.
"""

from __future__ import annotations

import _ast as ast
import builtins
import fcntl
import linecache
import os
import select
import sys
import time
import traceback
from _thread import get_ident

from . import failures
from .protocol import MAX_PAYLOAD
from .settling import leave_runner
from .standard import Fence, Input, flush, standard_error, standard_output, without_newline
from .words import Words

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import CodeType, FrameType
    from typing import Any, Callable, NoReturn

    from .worker import Settings
else:
    import _signal as signal  # the package around it looks for an enumeration's member of every handler

try:
    import resource
except ImportError:  # a Python built without it
    resource = None  # type: ignore[assignment]

_CO_COROUTINE = 0x80
_MAX_TEXT = MAX_PAYLOAD // 16  # twice this, each character escaped, fits a frame
_FIRST_OF_OURS = 64


def main(control: int, sync: int, stdout: int, stderr: int, settings: Settings) -> NoReturn:
    """Become the kernel: called in the child right after the fork, and never returns."""
    code = 1
    try:
        leave_runner(control, sync, stdout, stderr)
        _settle_in(settings.home, settings.environ, settings.program)
        Kernel(control, sync).serve()
        code = 0
    except BaseException:
        try:
            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        except OSError:
            pass
    finally:
        os._exit(code)


def _settle_in(home: str, environ: dict[str, str], program: str) -> None:
    os.environ.clear()
    os.environ.update(environ)
    # There is no screen, so matplotlib would look for one in vain.
    os.environ.setdefault("MPLBACKEND", "Agg")
    time.tzset()
    try:
        os.chdir(home)
    except OSError:
        pass  # an earlier kernel has closed it to itself; code that mends that must be able to run
    sys.argv = [""]
    if program != sys.executable:
        # That of an environment of packages, which `site` recognizes by it; processes that user code starts get it too.
        sys.executable = program
        sys.prefix = sys.exec_prefix = os.path.dirname(os.path.dirname(program))
    # The runner was started with -S and -I to be quick and safe; the user wants what is installed.
    sys.path[:0] = ["", *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        import site

        site.main()
    except Exception:
        traceback.print_exc()


class Kernel:
    """One conversation with the runner, and the namespace that it fills."""

    def __init__(self, control: int, sync: int) -> None:
        self._words = Words(control)
        self._fence = Fence(sync)
        self._counters = _Counters()
        # What this process reads on behalf of no run, its conversation with the runner aside.
        self._own_reads = 0
        self._loop: Any = None
        self._run = 0
        self._main_thread = get_ident()
        self._running = False
        self._shielded = False
        self._pending = False
        # SIGINT was ignored since the fork: the first run looks whether one was meant for it.
        self._early = True
        self._take_over_streams()
        self._offer_display()
        self._namespace = self._new_main()
        os.register_at_fork(after_in_child=self._become_child)
        signal.signal(signal.SIGINT, self._on_interrupt)

    def serve(self) -> None:
        """Execute what the runner sends, until it closes the socket."""
        while True:
            message = self._words.receive()
            if message is None:
                return
            if message["op"] == "run":
                self._execute(message)
            elif message["op"] == "complete":
                self._complete(message["text"])

    def ask(self, text: str, password: bool) -> str:
        """One line from the user.

        Raises:
            EOFError: there is none, or nobody can be asked: only the thread of the run can ask.
        """
        if self._fence.is_child or not self._running or get_ident() != self._main_thread:
            raise EOFError("only the main thread of a run can ask for input")
        # An interrupt in the middle of a message would lose its place in the stream, so it waits for poll.
        self._shielded = True
        try:
            self._words.send({"op": "prompt", "text": text[:_MAX_TEXT], "password": password})
            while True:
                self._wait_for_word()
                message = self._words.receive()
                if message is None:
                    raise EOFError
                if message["op"] == "input":
                    break
        finally:
            self._shielded = False
            if self._pending:
                self._pending = False
                raise KeyboardInterrupt
        if message.get("eof"):
            raise EOFError("end of input")
        return str(message["text"])

    def show(self, word: dict[str, Any]) -> None:
        """Send a display, in its place between what is written before and after."""
        if self._fence.is_child or not self._running:
            sys.stdout.write(word["mime"]["text/plain"] + "\n")
            return
        if self._words.sending._is_owned():  # type: ignore[attr-defined]
            raise RuntimeError("a signal handler cannot display in the middle of another display")
        flush()
        is_main = get_ident() == self._main_thread
        shielded = self._shielded
        self._shielded = shielded or is_main
        try:
            self._words.send(word)
        finally:
            if is_main:
                self._shielded = shielded
                if self._pending and not shielded:
                    self._pending = False
                    raise KeyboardInterrupt
        self._fence.wait()

    def _offer_display(self) -> None:
        def display(*objects: object, display_id: object = None) -> Any:
            """Show objects as richly as they can be shown.

            With a display_id, a text or True for a new one, a handle is returned whose `update` shows another object
            in their place.
            """
            self._load_display()
            from . import display as shown

            return shown.display(self.show, objects, display_id)

        def update_display(obj: object, *, display_id: object) -> None:
            """Show an object in the place of what was displayed with this id."""
            self._load_display()
            from . import display as shown

            shown.update_display(self.show, obj, display_id)

        vars(builtins).update(display=display, update_display=update_display)
        sys.meta_path.insert(0, _PyplotFinder(self.show))

    def _take_over_streams(self) -> None:
        sys.stdin = Input(self.ask)
        sys.stdout = standard_output(self._fence)
        sys.stderr = standard_error(self._fence)
        # The originals are declared constant; code that reaches for them must meet ours all the same.
        vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)

        def ask_line(prompt: object = "", /) -> str:
            """Read a line from the person who started the run."""
            flush()
            return without_newline(self.ask(str(prompt), False))

        def ask_password(prompt: str = "Password: ", stream: object = None, **_: object) -> str:
            """Read a line that is not shown."""
            flush()
            return without_newline(self.ask(str(prompt), True))

        import getpass

        builtins.input = ask_line
        getpass.getpass = ask_password

    def _new_main(self) -> dict[str, Any]:
        module = type(sys)("__main__")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        return module.__dict__

    def _become_child(self) -> None:
        self._fence.is_child = True
        self._counters.forget()
        for descriptor in (self._words.descriptor, self._fence.descriptor):
            try:
                os.close(descriptor)
            except OSError:
                pass

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if not self._running:
            self._early = True
        elif self._shielded:
            self._pending = True
        else:
            raise KeyboardInterrupt

    def _execute(self, message: dict[str, Any]) -> None:
        self._run = message["run"]
        before, traffic = _cpu_seconds(), self._traffic()
        events: list[dict[str, Any]] = []
        status, exit_code = self._outcome(message, events)
        # The code of a run may leave a fork of this process behind; it must not answer for the kernel.
        if self._fence.is_child:
            flush()
            os._exit(exit_code)
        flush()
        spent = _cpu_seconds() - before
        end = {"op": "end", "status": status, "exit_code": exit_code, "cpu_s": spent}
        after = self._traffic()
        if traffic is not None and after is not None:
            end["read_bytes"], end["written_bytes"] = (max(0, late - early) for early, late in zip(traffic, after))
        self._words.send(*events, end)

    def _complete(self, text: str) -> None:
        try:
            from .complete import complete

            found = complete(text, self._namespace)
        except Exception:
            found = []  # whatever the user's objects did, somebody waits
        self._words.send({"op": "completions", "completions": found})

    def _traffic(self) -> tuple[int, int] | None:
        """Bytes that read and write calls have moved, of children that were waited for too; None where nobody counts.

        The conversation with the runner is left out, and so is this look.
        """
        try:
            text = self._counters.read()
            first, read, second, written, _ = text.split(None, 4)
            if (first, second) != (b"rchar:", b"wchar:"):
                raise ValueError("other counters")
            heard, said = self._words.heard + self._fence.heard, self._words.said + self._fence.said
            moved = int(read) - heard - self._own_reads, int(written) - said
        except Exception:
            self._counters.forget()
            return None
        self._own_reads += len(text)
        return moved

    def _load_display(self) -> None:
        """Load what shows objects with the first that is shown; what that reads is ours, not the run's."""
        if __package__ + ".display" in sys.modules:
            return
        before = self._traffic()
        from . import display  # noqa: F401 - for its place in sys.modules

        after = self._traffic()
        if before is not None and after is not None:
            self._own_reads += after[0] - before[0]

    def _outcome(self, message: dict[str, Any], events: list[dict[str, Any]]) -> tuple[str, int]:
        if signal.getsignal(signal.SIGINT) != self._on_interrupt:
            signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            try:
                self._running = True
                if self._early:
                    self._look_for_interrupt()
                self._evaluate_and_show(message, events)
            finally:
                self._running = self._shielded = self._pending = False
        except SystemExit as error:
            self._running = False
            return "exited", _exit_code(error)
        except KeyboardInterrupt as error:
            self._running = False
            events.append(self._report(error))
            return "interrupted", 130
        except BaseException as error:
            self._running = False
            events.append(self._report(error))
            return "error", 1
        return "ok", 0

    def _evaluate_and_show(self, message: dict[str, Any], events: list[dict[str, Any]]) -> None:
        try:
            value = self._evaluate(message["code"])
            if message["echo"] and value is not None:
                builtins._ = value  # type: ignore[attr-defined]
                self._load_display()
                from .display import result

                events.append(result(value))
        except KeyboardInterrupt:
            raise
        except BaseException:
            events += _figures()
            raise
        events += _figures()

    def _evaluate(self, code: str) -> Any:
        """Execute `code`; the value of its last statement if that is an expression."""
        name = f"<run {self._run}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = self._parse(code, name)
        last = tree.body[-1] if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if last is not None:
            tree.body.pop()
        flags, body = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, None
        if tree.body:
            body = compile(tree, name, "exec", flags=flags, dont_inherit=True)
            flags |= body.co_flags & _FUTURES
        # Both are compiled before either runs: code with a mistake in its last line does nothing.
        expression = None
        if last is not None:
            expression = compile(ast.Expression(last.value), name, "eval", flags=flags, dont_inherit=True)
        if body is not None:
            self._evaluate_compiled(body)
        return self._evaluate_compiled(expression) if expression is not None else None

    def _parse(self, code: str, name: str) -> Any:
        try:
            return compile(code, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        except SyntaxError:
            from . import magics

            python = magics.rewritten(code)
            if python is None:
                raise
        tree = compile(python, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        magics.install(self._namespace, self._evaluate)
        return tree

    def _evaluate_compiled(self, code: CodeType) -> Any:
        value = eval(code, self._namespace)  # noqa: S307 - running other people's code is the purpose
        return self._await(value) if code.co_flags & _CO_COROUTINE else value

    def _await(self, coroutine: Any) -> Any:
        if self._loop is None or self._loop.is_closed():
            import asyncio

            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            if not task.done():
                task.cancel()
                try:
                    self._loop.run_until_complete(task)
                except BaseException:
                    pass
            raise

    def _report(self, error: BaseException) -> dict[str, Any]:
        told = failures.told(error)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        try:
            sys.stderr.write("".join(told["traceback"]))
        except BaseException:
            pass
        return told

    def _look_for_interrupt(self) -> None:
        """Raise if the interrupt that came between two runs was meant for this one.

        The runner sends the number of the run before the signal, so that an interrupt neither gets lost before
        the run has begun nor hits the next.
        """
        self._early = False
        self._shielded = True
        for message in self._received():
            if message["op"] == "interrupt" and message["run"] == self._run:
                raise KeyboardInterrupt
        self._shielded = False

    def _received(self) -> list[dict[str, Any]]:
        messages = []
        while self._words.have_come():
            message = self._words.receive()
            if message is None:
                break
            messages.append(message)
        return messages

    def _wait_for_word(self) -> None:
        if self._words.have_begun():
            return
        waiting = select.poll()
        waiting.register(self._words.descriptor, select.POLLIN)
        self._shielded = False
        if not self._pending:
            waiting.poll()
        self._shielded = True
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt


class _PyplotFinder:
    """Has `plt.show` replaced as pyplot is imported: nobody knows before whether it will be."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self._show = show

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "matplotlib.pyplot":
            return None
        from .display import find_pyplot

        others = [finder for finder in sys.meta_path if finder is not self]
        return find_pyplot(self._show, others, name, path, target)


class _Counters:
    """What the system counts of this process's reads and writes. Opened once: two looks belong to every run."""

    def __init__(self) -> None:
        self._descriptor = -1

    def read(self) -> bytes:
        if self._descriptor < 0:
            opened = os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)
            # Low numbers are left to whoever counts on getting them.
            self._descriptor = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _FIRST_OF_OURS)
            os.close(opened)
        return os.pread(self._descriptor, 4096, 0)

    def forget(self) -> None:
        """Open it anew next time: user code may have closed it, and opened something else in its place."""
        self._descriptor = -1


def _cpu_seconds() -> float:
    if resource is None:
        return sum(os.times()[:4])
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def _exit_code(error: SystemExit) -> int:
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code) & 0xFF
    try:
        sys.stderr.write(f"{code}\n")
    except BaseException:
        pass
    return 1


def _figures() -> list[dict[str, Any]]:
    if "matplotlib.pyplot" not in sys.modules:
        return []
    from .display import figures

    return figures()


def _future_flags() -> int:
    import __future__

    flags = 0
    for name in __future__.all_feature_names:
        flags |= getattr(__future__, name).compiler_flag
    # Generators and nested scopes are old and share bits with other flags of code objects.
    return flags & ~0xFFFF


_FUTURES = _future_flags()
