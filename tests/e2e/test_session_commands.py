"""The commands on sessions, as `roost` and as `backend.ai`: real processes, a real server, real sandboxes."""

import asyncio
import itertools
import json
import os
import pty
import shutil
import signal
import sys
from pathlib import Path

import pytest

from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.servers import Caller

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)
PROGRAMS = {
    "roost": [sys.executable, "-m", "roost"],
    "backend.ai": [sys.executable, "-c", "from ai.backend.client.cli.main import main; main(prog_name='backend.ai')"],
}
# An ordinary user's host neither limits nor measures a session.
IS_ROOT = os.getuid() == 0
LIMITS = ("-r", "cpu=1") if IS_ROOT else ()
# Nothing is enforced for it, since it never starts.
TOO_LARGE = ("-r", "cpu=1000000")
BOTH = pytest.mark.parametrize("program", PROGRAMS)


class Shell:
    """Runs commands as a user of the server would."""

    def __init__(self, server: Caller, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BACKEND_", "ROOST_", "XDG"))}
        target = server.target
        self.home = home
        self.environ = kept | {
            "BACKEND_ENDPOINT": target.endpoint,
            "BACKEND_ACCESS_KEY": target.access_key,
            "BACKEND_SECRET_KEY": target.secret_key,
            "HOME": str(home),
            "PYTHONUTF8": "1",
        }

    async def start(
        self, program: str, *arguments: str, stdin: int = asyncio.subprocess.PIPE
    ) -> "asyncio.subprocess.Process":
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *PROGRAMS[program], *arguments, cwd=self.home, env=self.environ, stdin=stdin, stdout=pipe, stderr=pipe
        )

    async def __call__(self, program: str, *arguments: str, stdin: str = "") -> tuple[int | None, str, str]:
        process = await self.start(program, *arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return process.returncode, out.decode(), err.decode()

    async def json(self, program: str, *arguments: str) -> tuple[int | None, object]:
        status, out, err = await self(program, "--output", "json", *arguments)
        assert err == ""
        return status, json.loads(out)


@pytest.fixture
def shell(server: Caller, tmp_path: Path) -> Shell:
    return Shell(server, tmp_path)


@BOTH
async def test_a_session_from_its_creation_to_its_end(shell: Shell, program: str) -> None:
    created = await shell(program, "session", "create", "python", "-t", "class-7", "-e", "A=1", *LIMITS)
    again = await shell(program, "start", "python", "--name", "class-7")
    ran = await shell(program, "run", "python", "-t", "class-7", "-c", "import os; print('out', os.environ['A'])")
    logs = await shell(program, "session", "logs", "class-7")
    restarted = await shell(program, "restart", "class-7")
    renamed = await shell(program, "session", "rename", "class-7", "class-8")
    ended = await shell(program, "rm", "-s", "class-8")
    gone = await shell(program, "session", "kill", "class-8", "class-9")

    assert {status for status, _, _ in (created, again, ran, logs, restarted, renamed, ended)} == {0}, created
    assert "is created and ready" in created[2]
    assert "is already running" in again[2]
    assert "out 1\n" in ran[1]
    assert "out 1\n" in logs[1]
    assert "class-8" in renamed[2]
    assert ("mem" in ended[1]) == IS_ROOT
    assert gone[0] == 1
    if program == "roost":
        assert created[1] == "class-7\n"
        assert gone[2].count("error: ") == 2
        assert "hint: list your sessions" in gone[2]
    else:
        assert created[1] == ""
        assert created[2].startswith("∙ ")
        assert "✘ class-9: BackendAPIError: 404 Not Found - " in gone[2]
        assert "with -o" in gone[2]


@BOTH
async def test_files_go_in_and_out_and_are_listed(shell: Shell, program: str) -> None:
    (shell.home / "in").mkdir()
    (shell.home / "in" / "big").write_bytes(os.urandom(2 << 20))
    await shell(program, "create", "python", "-t", "class-7")

    up = await shell(program, "session", "upload", "class-7", "in")
    listed = await shell(program, "session", "ls", "class-7", "in")
    home = await shell.json(program, "session", "ls", "class-7")
    missing = await shell(program, "session", "ls", "class-7", "nope")
    down = await shell(program, "session", "download", "class-7", "in/big", "--dest", "out")

    assert (up[0], down[0], missing[0], missing[1]) == (0, 0, 1, ""), (up, down)
    assert "big" in listed[1]
    assert "2097152" in listed[1]
    assert ("----" in listed[1]) == (program == "backend.ai")
    assert isinstance(home[1], dict)
    assert "in" in [item["name"] for item in home[1]["items"]]
    assert home[1]["count"] == home[1]["total_count"] == len(home[1]["items"])
    assert (shell.home / "out/big").read_bytes() == (shell.home / "in/big").read_bytes()


@BOTH
async def test_results_and_errors_are_json_where_that_is_asked_for(shell: Shell, program: str) -> None:
    created = await shell.json(program, "create", "python", "-t", "class-7")
    logs = await shell.json(program, "session", "logs", "class-7")
    ended = await shell.json(program, "destroy", "class-7")
    failed = await shell.json(program, "restart", "class-7")
    refused = await shell.json(program, "create", "python", "-t", "no")
    several = await shell.json(program, "destroy", "class-7", "class-9")

    assert isinstance(created[1], dict)
    assert created[1]["items"][0]["name"] == "class-7"
    assert isinstance(ended[1], dict)
    assert ended[1]["items"][0]["stats"]["status"] == "terminated"
    assert isinstance(logs[1], dict)
    assert logs[1]["items"][0]["logs"] == ""
    assert several[0] == 1
    assert isinstance(several[1], dict)
    assert [sorted(item) for item in several[1]["items"]] == [["error", "name"]] * 2
    for status, error in (failed, refused):
        assert status == 1
        assert isinstance(error, dict)
        assert list(error) == ["error"]


@BOTH
async def test_stages_run_on_files_and_the_exit_code_is_the_programs(shell: Shell, program: str) -> None:
    (shell.home / "main.py").write_text("import sys, data\nprint(data.x, input('n? '))\nsys.exit(3)")
    (shell.home / "data.py").write_text("x = 7")
    files = ("main.py", "data.py")

    ran = await shell(
        program, "run", "python", *files, "--clean", "-", "--build", "echo built", "--exec", "python3 main.py", "--rm",
        "-s", "--basedir", ".", stdin="Ann\n",
    )  # fmt: skip
    failed = await shell(program, "run", "--rm", "python", "main.py", "--build", "exit 5", "-q")

    assert ran[0] == 3, ran
    assert ran[1].startswith("built\n")
    assert "7 Ann\n" in ran[1]
    assert ("mem" in ran[1]) == IS_ROOT
    assert "stage clean ended with exit code 0\nstage build ended with exit code 0\n" in ran[2]
    assert failed[0] == 127
    assert "stage" not in failed[2]


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
async def test_files_of_a_compiled_language_are_built_and_executed(shell: Shell) -> None:
    (shell.home / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("hi"); return 4; }')

    ran = await shell("roost", "run", "c", "main.c")

    assert (ran[0], ran[1]) == (4, "hi\n"), ran


async def test_the_compatible_run_executes_files_in_the_images_own_way(shell: Shell, server: Caller) -> None:
    (shell.home / "main.py").write_text("print('from main')")

    ran = await shell("backend.ai", "run", "--rm", "-q", "python", "main.py")
    neither = await shell("backend.ai", "run", "python")
    both = await shell("backend.ai", "run", "-c", "1", "python", "main.py")
    value = await shell("backend.ai", "run", "--rm", "-c", "1 + 1", "python")
    wrong = await shell("backend.ai", "run", "-e", "A", "-c", "1", "python")

    assert (ran[0], "from main\n" in ran[1]) == (0, True)
    assert neither[0] == both[0] == 1
    assert "provide the command-line code snippet" in neither[2]
    assert (value[0], value[1]) == (0, "2")
    assert wrong[0] == 2
    assert (await server("GET", "/session")).body == []


@BOTH
async def test_a_sweep_runs_every_combination_in_a_session_of_its_own(
    shell: Shell, server: Caller, program: str
) -> None:
    (shell.home / "main.sh").write_text('echo "$A $1"; echo oh >&2; exit $1')

    swept = await shell(
        program, "run", "python", "main.sh", "-t", "sweep", "--rm", "--build", "-", "-e", "A=v$x", "--env-range",
        "x=case:a,b", "--exec", "sh main.sh $n", "--exec-range", "n=range:0,2", "--max-parallel", "2",
    )  # fmt: skip

    logs = shell.home / ".cache/backend.ai/client-logs"
    assert swept[0] == 1, swept
    assert swept[2].count("ended with exit code 0;") == swept[2].count("ended with exit code 1;") == 2
    assert [(logs / f"sweep-{at}.stdout.log").read_text() for at in (1, 2, 3, 4)] == [
        "va 0\n",
        "va 1\n",
        "vb 0\n",
        "vb 1\n",
    ]
    assert "oh\n" in (logs / "sweep-4.stderr.log").read_text()
    assert (await server("GET", "/session")).body == []


async def test_no_more_run_at_once_than_is_allowed(shell: Shell, server: Caller) -> None:
    swept = await shell(
        "roost", "run", "python", "-t", "sweep", "--rm", "-c", "pass", "-e", "A=$x", "--env-range", "x=range:0,4",
        "--max-parallel", "1",
    )  # fmt: skip
    made = (await server("GET", "/session", params={"status": "all"})).body
    history = {one["name"]: (await server("GET", f"/session/{one['id']}/history")).body for one in made}
    times = sorted((story[0]["at"], story[-1]["at"]) for story in history.values())

    assert swept[0] == 0, swept
    assert len(times) == 4
    assert all(ended <= created for (_, ended), (created, _) in itertools.pairwise(times))


@BOTH
async def test_an_interrupt_ends_a_whole_sweep(shell: Shell, server: Caller, program: str) -> None:
    code = "import time, pathlib; pathlib.Path('on').touch(); time.sleep(60)"
    process = await shell.start(
        program, "run", "python", "-t", "sweep", "--rm", "-c", code, "-e", "A=$x", "--env-range", "x=range:0,5",
    )  # fmt: skip
    async with asyncio.timeout(60):
        while not await are_on(server, "sweep-1", "sweep-2"):
            await asyncio.sleep(0.05)

    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)

    assert err.count(b"ended with exit code") == 2, err
    assert process.returncode == 130
    made = (await server("GET", "/session", params={"status": "all"})).body
    assert sorted(one["name"] for one in made) == ["sweep-1", "sweep-2"]
    assert {one["status"] for one in made} == {"TERMINATED"}


async def are_on(server: Caller, *names: str) -> bool:
    """Whether the programs in these sessions have begun."""
    replies = [await server("GET", f"/session/{name}/files", {"path": "."}) for name in names]
    return all(reply.status == 200 and '"on"' in reply.body["files"] for reply in replies)


@BOTH
async def test_nobody_answers_the_prompts_of_a_sweep(shell: Shell, program: str) -> None:
    swept = await shell(
        program, "run", "python", "-t", "sweep", "--rm", "-c", "input('? ')", "-e", "A=$x", "--env-range", "x=case:a,b",
        stdin="Ann\nBob\n",
    )  # fmt: skip

    logs = shell.home / ".cache/backend.ai/client-logs"
    said = "EOFError" if program == "roost" else "KeyboardInterrupt"
    assert said in (logs / "sweep-1.stderr.log").read_text(), swept
    assert swept[0] == (1 if program == "roost" else 0)


@BOTH
async def test_an_interrupt_reaches_the_program(shell: Shell, server: Caller, program: str) -> None:
    code = "import time\ntry:\n    print('on', flush=True)\n    time.sleep(60)\nfinally:\n    print('off')"
    process = await shell.start(program, "run", "--rm", "-c", code, "python", stdin=asyncio.subprocess.DEVNULL)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"on\n"

    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert out == b"off\n", err
    assert b"KeyboardInterrupt" in err
    assert b"asynchronous generator" not in err
    assert process.returncode == (130 if program == "roost" else 0)
    assert (await server("GET", "/session")).body == []


async def test_why_tells_of_a_run_what_it_came_to_and_what_it_cost(shell: Shell, server: Caller) -> None:
    made = await server("POST", "/session", {"name": "class-7", "image": "python"})
    run = await server("POST", "/session/class-7/runs", {"run_id": "r-1", "mode": "query", "code": "1 / 0"})
    await server.events("class-7", "r-1")

    found = await shell("roost", "why", "r-1")
    named = await shell("roost", "why", "-t", "class-7", "r-1")
    session = await shell("roost", "why", "class-7")
    nothing = await shell("roost", "why", "nobody")

    assert (made.status, run.status) == (201, 201)
    assert found == named
    assert found[0] == 0
    assert "error, exit code 1\n" in found[1]
    assert "s of CPU" in found[1]
    assert "it runs under bubblewrap" in session[1]
    assert (nothing[0], nothing[1]) == (1, "")


async def test_a_missing_argument_is_an_error_of_its_own(shell: Shell) -> None:
    assert (await shell("backend.ai", "destroy"))[0] == 1
    assert (await shell("backend.ai", "session", "dance"))[0] == 2
    assert (await shell("backend.ai", "run", "--max-parallel", "0", "-c", "1", "python"))[0] == 2
    assert "Usage: backend.ai [OPTIONS] COMMAND [ARGS]" in (await shell("backend.ai", "--help"))[1]


@BOTH
async def test_a_command_that_is_interrupted_ends_as_one_that_a_signal_killed(
    shell: Shell, server: Caller, program: str
) -> None:
    process = await shell.start(program, "create", "python", "--type", "batch", "-c", "true", "--starts-at", "1d")
    async with asyncio.timeout(30):
        while not (await server("GET", "/session")).body:
            await asyncio.sleep(0.02)

    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == -signal.SIGINT
    assert (out, err) == (b"", b"")


async def test_a_transfer_draws_a_bar_on_a_terminal(shell: Shell, server: Caller) -> None:
    await server("POST", "/session", {"name": "class-7", "image": "python"})
    (shell.home / "big").write_bytes(bytes(8 << 20))
    ours, theirs = pty.openpty()
    command = [*PROGRAMS["roost"], "session", "upload", "class-7", "big"]

    process = await asyncio.create_subprocess_exec(*command, cwd=shell.home, env=shell.environ, stderr=theirs)
    os.close(theirs)
    shown = await asyncio.to_thread(read_all, ours)
    os.close(ours)

    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert "uploading" in shown
    assert "uploaded 1 file to class-7" in shown


def read_all(descriptor: int) -> str:
    """What a terminal shows, until nobody writes to it any more."""
    shown = b""
    while True:
        try:
            shown += os.read(descriptor, 65536)
        except OSError:  # how Linux says so
            return shown.decode(errors="replace")


@BOTH
async def test_who_waits_for_a_creation_is_told_why(shell: Shell, program: str) -> None:
    process = await shell.start(program, "session", "create", "python", "-t", "class-7", *TOO_LARGE)
    assert process.stderr is not None
    told = await asyncio.wait_for(process.stderr.readline(), 60)
    ended = await shell(program, "rm", "class-7")
    await asyncio.wait_for(process.communicate(), 60)

    assert told.decode().startswith("waiting: no node is large enough: local has ")
    assert (ended[0], process.returncode) == (0, 1)
