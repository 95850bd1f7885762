"""What the runner's workers do: batch runs, the shell, completions, kills (docs/protocol/runner.md §3)."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from roost.runner.protocol import Frame, Kind, encode_json
from tests.runners import Connection, Runner, a_runner, end, text


@pytest.fixture
def runner() -> Iterator[Runner]:
    with a_runner() as runner:
        yield runner


@pytest.fixture
def shell() -> Iterator[Connection]:
    with a_runner(language="shell", program="/bin/bash") as runner:
        agent = runner.connect()
        agent.resume()
        yield agent


def stages(frames: list[Frame]) -> list[tuple[str, int]]:
    told = [json.loads(frame.payload) for frame in frames if frame.kind == Kind.STAGE]
    return [(stage["stage"], stage["exit_code"]) for stage in told]


def connected(runner: Runner) -> Connection:
    agent = runner.connect()
    agent.resume()
    return agent


def is_of(kind: int) -> Callable[[Frame], bool]:
    return lambda frame: frame.kind == kind


def shell_run(agent: Connection, code: str, run: int) -> tuple[str, str, int]:
    agent.start(code, run)
    frames = agent.until_end()
    return text(frames), end(frames)["status"], end(frames)["exit_code"]


def complete(agent: Connection, code: str, number: int = 1) -> Any:
    agent.send(Kind.COMPLETE, {"id": number, "text": code})
    [*_, answer] = agent.until(is_of(Kind.COMPLETIONS))
    told = json.loads(answer.payload)
    assert told["id"] == number
    return told["completions"]


# Batch runs


def test_every_stage_reports_and_the_last_one_ends_the_run(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(clean="echo c; exit 3", build="echo b >&2", exec="echo $_BACKEND_BATCH_MODE $A; exit 7")
    frames = agent.until_end()

    assert [frame.kind for frame in frames] == [
        Kind.STARTED,
        Kind.STDOUT,
        Kind.STAGE,
        Kind.STDERR,
        Kind.STAGE,
        Kind.STDOUT,
        Kind.END,
    ]
    assert stages(frames) == [("clean", 3), ("build", 0)]
    assert (text(frames), end(frames)["status"], end(frames)["exit_code"]) == ("c\n1 b\n", "exited", 7)


def test_stages_and_what_the_next_one_writes_keep_their_order(runner: Runner) -> None:
    agent = connected(runner)

    for number in range(1, 201):
        agent.batch(clean="echo c", build="echo b >&2", exec="echo x", run=number)
        kinds = [frame.kind for frame in agent.until_end()]
        assert kinds == [Kind.STARTED, Kind.STDOUT, Kind.STAGE, Kind.STDERR, Kind.STAGE, Kind.STDOUT, Kind.END]


def test_skipped_stages_report_too(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch()
    frames = agent.until_end()

    assert stages(frames) == [("clean", 0), ("build", 0)]
    assert (end(frames)["status"], end(frames)["exit_code"]) == ("ok", 0)


def test_what_was_not_built_is_not_executed(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(build="exit 2", exec="echo never")
    frames = agent.until_end()

    assert stages(frames) == [("clean", 0), ("build", 2)]
    assert (text(frames), end(frames)["exit_code"]) == ("", 127)


def test_the_default_of_python_is_its_main_file(runner: Runner) -> None:
    agent = connected(runner)
    (runner.home / "main.py").write_text("import sys; print('main', sys.version_info[0]); sys.exit(5)")

    agent.batch(clean="*", build="*", exec="*")
    frames = agent.until_end()

    assert stages(frames) == [("clean", 0), ("build", 0)]
    assert "setup.py" in text(frames, Kind.STDERR)
    assert (text(frames), end(frames)["exit_code"]) == ("main 3\n", 5)


def test_a_makefile_is_what_builds(runner: Runner) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is missing")
    agent = connected(runner)
    (runner.home / "Makefile").write_text("all:\n\t@echo made\n")

    agent.batch(build="*", exec="*")
    frames = agent.until_end()

    assert stages(frames) == [("clean", 0), ("build", 0)]
    assert text(frames) == "made\n"
    assert "main.py" in text(frames, Kind.STDERR)
    assert end(frames)["exit_code"] == 127


@pytest.mark.parametrize(
    "program",
    [
        "read x; echo got $x",
        "python3 -c 'print(\"got\", input())'",
        'python3 -c \'import sys; print("got", sys.stdin.readline(), end="")\'',
        "python3 -c 'import select, sys; select.select([0], [], [], 20); print(\"got\", input())'",
        "python3 -c 'import select; p = select.poll(); p.register(0, 1); p.poll(20000); print(\"got\", input())'",
        "python3 -c 'import select; p = select.epoll(); p.register(0, 1); p.poll(20); print(\"got\", input())'",
        "python3 -c 'import threading as t; t.Thread(target=lambda: print(\"got\", input())).start()'",
    ],
    ids=["shell", "input", "stdin", "select", "poll", "epoll", "thread"],
)
def test_whatever_waits_for_a_line_prompts_for_it(runner: Runner, program: str) -> None:
    agent = connected(runner)

    agent.batch(exec=program)
    asked = agent.until(is_of(Kind.PROMPT))
    agent.send(Kind.INPUT, {"prompt": 1, "text": "it"}, run=1)
    frames = agent.until_end()

    assert json.loads(asked[-1].payload) == {"prompt": 1, "text": "", "password": False}
    assert (text(frames), end(frames)["exit_code"]) == ("got it\n", 0)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls are those of x86_64")
@pytest.mark.parametrize("call", ["7, c_ulong(-1), 0, 500", "23, 0, c_ulong(-1), 0, 0, (c_long * 2)(0, 500000)"])
def test_whoever_waits_with_an_address_that_is_none_is_left_alone(runner: Runner, call: str) -> None:
    agent = connected(runner)

    agent.batch(exec=f"python3 -c 'from ctypes import *; CDLL(None).syscall({call})'; echo done")
    frames = agent.until_end()

    assert (text(frames), end(frames)["status"]) == ("done\n", "ok")


def test_the_end_of_input_reaches_a_program(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(exec="cat; echo over")
    agent.until(is_of(Kind.PROMPT))
    agent.send(Kind.INPUT, {"prompt": 1, "text": "one"}, run=1)
    agent.until(is_of(Kind.PROMPT))
    agent.send(Kind.INPUT, {"prompt": 2, "eof": True}, run=1)
    frames = agent.until_end()

    assert text(frames) == "over\n"


def test_an_interrupt_ends_a_batch_run(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(exec="python3 -c 'import time; print(1); time.sleep(60)'; echo never")
    agent.until(is_of(Kind.STDOUT))
    agent.send(Kind.INTERRUPT, {}, run=1)
    frames = agent.until_end()

    assert (end(frames)["status"], end(frames)["exit_code"]) == ("interrupted", 130)
    assert "never" not in text(frames)


LONG_LINE = "x" * 300_000
"""Longer than a pipe holds."""
DEAF = "head -c 1 >/dev/null; exec python3 -c 'import time; print(1, flush=True); time.sleep(60)'"
"""Begins to read a line, and leaves the rest of it in the pipe."""


def test_an_interrupt_is_heard_while_nobody_reads_a_long_line(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(exec=DEAF)
    agent.until(is_of(Kind.PROMPT))
    agent.send(Kind.INPUT, {"prompt": 1, "text": LONG_LINE}, run=1)
    agent.until(is_of(Kind.STDOUT))
    agent.send(Kind.INTERRUPT, {}, run=1)
    frames = agent.until_end()

    assert (end(frames)["status"], end(frames)["exit_code"]) == ("interrupted", 130)


def test_an_interrupt_right_behind_its_start_ends_a_batch_run(runner: Runner) -> None:
    agent = connected(runner)

    stages = {"code": "", "mode": "batch", "echo": True, "stages": [None, None, "exec sleep 60"]}
    agent.socket.sendall(encode_json(Kind.START, 0, 1, stages) + encode_json(Kind.INTERRUPT, 0, 1, {}))
    frames = agent.until_end()

    assert (end(frames)["status"], end(frames)["exit_code"]) == ("interrupted", 130)


def test_an_interrupt_is_heard_that_comes_together_with_a_line(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(exec="read x; exec sleep 60")
    agent.until(is_of(Kind.PROMPT))
    line = encode_json(Kind.INPUT, 0, 1, {"prompt": 1, "text": "x"})
    agent.socket.sendall(line + encode_json(Kind.INTERRUPT, 0, 1, {}))
    frames = agent.until_end()

    assert (end(frames)["status"], end(frames)["exit_code"]) == ("interrupted", 130)


def test_a_program_may_end_without_reading_a_long_line(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(exec="head -c 1; exit 3")
    agent.until(is_of(Kind.PROMPT))
    agent.send(Kind.INPUT, {"prompt": 1, "text": LONG_LINE}, run=1)
    frames = agent.until_end()

    assert (text(frames), end(frames)["status"], end(frames)["exit_code"]) == ("x", "exited", 3)


def test_a_long_line_arrives_whole(runner: Runner) -> None:
    agent = connected(runner)

    agent.batch(exec="read x; echo ${#x}; cat")
    agent.until(is_of(Kind.PROMPT))
    agent.send(Kind.INPUT, {"prompt": 1, "text": LONG_LINE}, run=1)
    told = agent.until(is_of(Kind.PROMPT))
    agent.send(Kind.INPUT, {"prompt": 2, "eof": True}, run=1)
    frames = agent.until_end()

    assert (text(told), end(frames)["exit_code"]) == (f"{len(LONG_LINE)}\n", 0)


PROCESSES = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo $f; done 2>/dev/null"
"""The command and the folder of each process that has not ended, a line each; `ps` is not on every machine."""


def test_a_kill_ends_whatever_a_batch_run_started(runner: Runner) -> None:
    agent = connected(runner)
    sleep = f"sleep 61.{os.getpid()}"  # no other test's

    agent.batch(exec=f"trap '' INT; {sleep} & echo on; wait; {sleep}")
    agent.until(is_of(Kind.STDOUT))
    agent.send(Kind.KILL, {}, run=1)
    frames = agent.until_end()
    agent.batch(exec=f"{PROCESSES} | grep -c '^{sleep} '; true", run=2)
    left = agent.until_end()

    assert (end(frames)["status"], end(frames)["signal"]) == ("kernel-died", 9)
    assert text(left) == "0\n"


def test_a_kill_ends_what_has_left_its_session_and_its_parents(runner: Runner) -> None:
    agent = connected(runner)
    sleep = f"sleep 62.{os.getpid()}"  # no other test's
    all_there = f"[ $({PROCESSES} | grep -c '^{sleep} ') = 3 ]"
    starts = f"(setsid setsid {sleep} > /dev/null &); setsid {sleep} &"

    agent.batch(build=f"(setsid {sleep} &)", exec=f"{starts} until {all_there}; do :; done; echo on; {sleep}")
    agent.until(is_of(Kind.STDOUT))
    agent.send(Kind.KILL, {}, run=1)
    frames = agent.until_end()
    agent.batch(exec=f"{PROCESSES} | grep -c '^{sleep} '; true", run=2)
    left = agent.until_end()

    assert end(frames)["status"] == "kernel-died"
    assert text(left) == "0\n"


def test_a_kill_leaves_alone_what_others_have_started(runner: Runner) -> None:
    agent = connected(runner)
    sleep = f"sleep 63.{os.getpid()}"  # no other test's
    orphan = f"(setsid {sleep} > /dev/null 2>&1 &)"

    agent.start(f"import subprocess; child = subprocess.Popen({sleep.split()})", run=1)
    agent.start(f"_ = subprocess.run({orphan!r}, shell=True)", run=2)
    agent.batch(exec=orphan, run=3)
    agent.batch(exec="echo on; sleep 64", run=4)
    agent.until(is_of(Kind.STDOUT))
    agent.send(Kind.KILL, {}, run=4)
    agent.until_end()
    found = f"{PROCESSES} | grep '^{sleep} ' | cut -d/ -f3"
    count = f"for n in $(seq 500); do pids=$({found}); [ $(echo $pids | wc -w) = 3 ] && break; done"  # some begin late
    agent.batch(exec=f"{count}; echo $pids | wc -w; kill $pids", run=5)
    left = agent.until_end()

    assert text(left) == "3\n"


def test_a_batch_run_waits_for_orphans(runner: Runner) -> None:
    agent = connected(runner)
    some_ended = 'cat /proc/[0-9]*/stat 2>/dev/null | grep -q ") Z $PPID "'

    agent.batch(exec=f"for n in 1 2 3; do (setsid true &); done; while {some_ended}; do :; done; echo none")
    frames = agent.until_end()

    assert text(frames) == "none\n"


def test_variables_outlive_a_batch_run(runner: Runner) -> None:
    agent = connected(runner)

    agent.start("x = 20", run=1)
    agent.until_end()
    agent.batch(exec="kill -9 $PPID", run=2)
    died = agent.until_end()
    agent.start("print(x + 1)", run=3)
    frames = agent.until_end()

    assert end(died)["status"] == "kernel-died"
    assert json.loads(frames[0].payload) == {"state_lost": False}
    assert text(frames) == "21\n"


def test_runs_of_both_modes_keep_their_order(runner: Runner) -> None:
    agent = connected(runner)

    for number in range(1, 7, 2):
        agent.batch(exec=f"echo {number}", run=number)
        agent.start(f"print({number + 1})", run=number + 1)
    frames = agent.until(lambda frame: (frame.kind, frame.run) == (Kind.END, 6))

    assert text(frames) == "".join(f"{number}\n" for number in range(1, 7))


def test_a_language_without_a_kernel_has_batch_mode_only() -> None:
    with a_runner(language="lua", program="/usr/bin/lua") as runner:
        agent = connected(runner)

        agent.start("print(1)", run=1)
        refused = agent.until_end()
        agent.batch(exec="echo fine", run=2)
        frames = agent.until_end()

    assert "batch mode" in text(refused, Kind.STDERR)
    assert end(refused)["exit_code"] == 127
    assert text(frames) == "fine\n"


# The shell


def test_a_shell_keeps_its_state(shell: Connection) -> None:
    assert shell_run(shell, "declare -A map; map[a]=5; cd /usr; f() { echo f; }", 1) == ("", "ok", 0)
    assert shell_run(shell, "echo ${map[a]} $PWD; f; false", 2) == ("5 /usr\nf\n", "exited", 1)


def test_code_of_any_shape_is_one_run(shell: Connection) -> None:
    assert shell_run(shell, "cat <<X\na\nX\necho 'two\nlines'", 1) == ("a\ntwo\nlines\n", "ok", 0)
    assert shell_run(shell, "if then", 2)[1:] == ("exited", 2)
    assert shell_run(shell, "echo " + "x" * 200_000, 3) == ("x" * 200_000 + "\n", "ok", 0)
    assert shell_run(shell, "echo alive", 4) == ("alive\n", "ok", 0)


# A program of its own says that it is there: between fork and exec a shell's child loses interrupts.
SLEEP = "python3 -uc 'import time; print(1); time.sleep(60)'"


@pytest.mark.parametrize("code", [SLEEP, "echo 1; while :; do :; done", f"f() {{ {SLEEP}; echo in; }}; f; echo out"])
def test_an_interrupt_leaves_the_shell_alive(shell: Connection, code: str) -> None:
    shell.start(f"x=5; {code}; echo never", 1)
    shell.until(is_of(Kind.STDOUT))
    shell.send(Kind.INTERRUPT, {}, run=1)
    frames = shell.until_end()

    assert (text(frames).strip(), end(frames)["status"]) == ("", "interrupted")
    assert shell_run(shell, "echo $x", 2) == ("5\n", "ok", 0)


def test_an_interrupt_right_behind_the_code_leaves_the_next_run_its_own(shell: Connection) -> None:
    for number in range(1, 40, 2):
        start = encode_json(Kind.START, 0, number, {"code": "echo old; false", "mode": "query", "echo": True})
        shell.socket.sendall(start + encode_json(Kind.INTERRUPT, 0, number, {}))
        shell.until_end()

        assert shell_run(shell, "echo new", number + 1) == ("new\n", "ok", 0)


def test_a_shell_asks_for_input(shell: Connection) -> None:
    shell.start("read x; echo got $x", 1)
    shell.until(is_of(Kind.PROMPT))
    shell.send(Kind.INPUT, {"prompt": 1, "text": "it"}, run=1)

    assert text(shell.until_end()) == "got it\n"
    assert shell_run(shell, "echo more", 2) == ("more\n", "ok", 0)


def test_a_shell_hears_an_interrupt_while_nobody_reads_a_long_line(shell: Connection) -> None:
    shell.start(f"x=5; (head -c 1 >/dev/null; {SLEEP}); echo never", 1)
    shell.until(is_of(Kind.PROMPT))
    shell.send(Kind.INPUT, {"prompt": 1, "text": LONG_LINE}, run=1)
    shell.until(is_of(Kind.STDOUT))
    shell.send(Kind.INTERRUPT, {}, run=1)
    frames = shell.until_end()

    assert end(frames)["status"] == "interrupted"
    assert shell_run(shell, "echo $x", 2) == ("5\n", "ok", 0)


def test_an_exit_ends_the_run_and_says_that_state_was_lost(shell: Connection) -> None:
    assert shell_run(shell, "x=5; echo bye; exit 4", 1) == ("bye\n", "exited", 4)

    shell.start("echo [$x]", 2)
    frames = shell.until_end()

    assert json.loads(frames[0].payload) == {"state_lost": True}
    assert text(frames) == "[]\n"
    assert text(frames, Kind.STDERR) == ""


# Completions


def test_names_are_completed_by_what_lives(runner: Runner) -> None:
    agent = connected(runner)
    agent.start("import os\nclass A:\n  size = 1\n  def show(self): pass\nname = 'x'; obj = A(); obj.side = A()")
    agent.until_end()

    assert complete(agent, "print(na") == ["name"]
    assert complete(agent, "obj.s") == ["obj.show", "obj.side", "obj.size"]
    assert complete(agent, "x = 1\nobj.side.sh") == ["obj.side.show"]
    assert "os.path" in complete(agent, "os.pa")
    assert "os" in complete(agent, "import o")
    assert complete(agent, "from os import getpi") == ["getpid"]
    assert complete(agent, "'text'.") == []
    assert complete(agent, "nothing.there") == []


def test_completing_calls_nothing_of_the_user(runner: Runner) -> None:
    agent = connected(runner)
    agent.start(
        "class A:\n"
        "  def __getattr__(self, name): open('called', 'w')\n"
        "  def __dir__(self): open('called', 'w'); return []\n"
        "  @property\n"
        "  def deep(self): open('called', 'w'); return self\n"
        "a = A()"
    )
    agent.until_end()

    assert complete(agent, "a.de") == ["a.deep"]
    assert complete(agent, "a.deep.de") == []
    assert not (runner.home / "called").exists()


def test_completing_calls_nothing_of_the_users_own_kinds(runner: Runner) -> None:
    agent = connected(runner)
    agent.start(
        "def call(*args): open('called', 'w'); return True\n"
        "class Text(str): startswith = isidentifier = call\n"
        "class Names(dict): __iter__ = __contains__ = keys = call\n"
        "class Kind(type): __getattribute__ = call\n"
        "class Thing(metaclass=Kind): pass\n"
        "class A: __dict__ = property(call)\n"
        "class B: pass\n"
        "a, b, c = A(), B(), B()\n"
        "b.__dict__[Text('deed')] = b.deep = Thing()\n"
        "c.__dict__ = Names(deep=1)\n"
        "globals()[Text('bad')] = 1"
    )
    agent.until_end()

    assert complete(agent, "a.de") == []
    assert complete(agent, "b.de") == ["b.deep"]
    assert complete(agent, "b.deep.de") == []
    assert complete(agent, "c.de") == ["c.deep"]
    assert complete(agent, "ba") == []
    assert not (runner.home / "called").exists()


def test_a_busy_kernel_completes_nothing(runner: Runner) -> None:
    agent = connected(runner)
    agent.start("input()")
    agent.until(is_of(Kind.PROMPT))

    assert complete(agent, "inp") == []

    agent.send(Kind.INPUT, {"prompt": 1, "text": ""}, run=1)
    agent.until_end()
    assert "input" in complete(agent, "inp", 2)
