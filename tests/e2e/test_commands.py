"""What a user types, on a machine where nothing is configured: real processes, a real server, real sandboxes."""

import asyncio
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import roost
from roost.client.local import stop_local_server
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.wire.runs import EventKind, RunStatus

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)
ROOT = Path(__file__).parents[2]
# Not the installed script: its first line names a place that an ordinary user may be unable to reach.
ROOST = [sys.executable, "-m", "roost"]


@pytest.fixture
def bare(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing runs, nothing is configured; the server that the test starts is stopped, its sessions ended."""
    for name in [name for name in os.environ if name.startswith(("BACKEND_", "ROOST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROOST_DATA_DIR", str(data_dir))
    yield data_dir
    if any(data_dir.glob("sandboxes/*")):
        for line in command("ps").stdout.splitlines():
            command("rm", line.split("\t")[0])
    stop_local_server(data_dir)


def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ROOST, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)


def test_the_first_command_starts_a_server_and_prints_the_answer(bare: Path) -> None:
    first = command("run", "python", "-c", "print(6*7)")
    second = command("run", "python", "-c", "print(6*7)")

    assert (first.returncode, first.stdout) == (second.returncode, second.stdout) == (0, "42\n")
    assert "started a server" in first.stderr
    assert "roost down" in first.stderr
    assert second.stderr == ""
    assert command("ps").stdout == ""


def test_two_first_commands_at_the_same_moment_share_one_server(bare: Path) -> None:
    both = [
        subprocess.Popen(
            [*ROOST, "run", "python", "-c", "print(6*7)"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]

    said = [process.communicate(timeout=60) for process in both]

    assert [stdout for stdout, _ in said] == ["42\n", "42\n"], said
    assert sum("started a server" in stderr for _, stderr in said) == 1
    assert (bare / "server.log").read_text().count("server.started") == 1


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [
        ("1/0", 1, "ZeroDivisionError"),
        ("raise SystemExit(7)", 7, ""),
        ("import os; os._exit(9)", 9, "the interpreter exited with 9"),
        ("import os; os.kill(os.getpid(), 9)", 137, "signal 9"),
        ("2 + 2", 0, ""),
    ],
)
def test_the_exit_code_is_the_programs(bare: Path, code: str, status: int, stderr: str) -> None:
    done = command("run", "python", "-c", code)

    assert (done.returncode, done.stdout) == (status, "")
    assert stderr in done.stderr
    assert done.stderr.count("Traceback") <= 1


def test_a_prompt_is_answered_from_a_pipe_or_ends(bare: Path) -> None:
    answered = command("run", "python", "-c", "print('hi', input('name? '))", stdin="Ann\n")
    ended = command("run", "python", "-c", "input()")

    assert (answered.returncode, answered.stdout) == (0, "hi Ann\n")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "EOFError" in ended.stderr


def test_a_prompt_is_asked_on_the_terminal(bare: Path) -> None:
    ours, theirs = pty.openpty()
    program = [*ROOST, "run", "python", "-c", "print('hi', input('name? '))"]
    with subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = read_until(ours, b"name? ")
        os.write(ours, b"Ann\n")
        seen += read_until(ours, b"hi Ann")
        status = process.wait(timeout=30)
    os.close(ours)

    assert status == 0
    assert seen.count(b"name? ") == 1


def test_a_session_is_kept_listed_explained_and_removed(bare: Path) -> None:
    first = command("run", "--name", "class-7", "python", "-c", "x = 20")
    second = command("run", "--name", "class-7", "python", "-c", "print(x + 1)")
    listed = command("ps")
    story = command("why", "class-7")
    removed = command("rm", "class-7")
    gone = command("rm", "class-7")

    assert (first.returncode, second.stdout) == (0, "21\n")
    assert listed.stdout.split("\t")[:3] == ["class-7", "RUNNING", "python:3.11"] or "python:3" in listed.stdout
    assert "it runs under bubblewrap" in story.stdout
    assert removed.returncode == 0
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "hint: list your sessions" in gone.stderr
    assert "its owner asked for its end" in command("ps", "--all").stdout


def test_the_server_is_started_shown_and_stopped_and_sessions_outlive_it(bare: Path) -> None:
    before = command("status")
    up = command("up")
    status = command("status")
    kept = command("run", "--name", "class-7", "python", "-c", "x = 5")
    down = command("down")
    after = command("status")
    again = command("run", "--name", "class-7", "python", "-c", "print(x)")

    assert (before.returncode, after.returncode) == (1, 1)
    assert up.stdout.startswith("http://127.0.0.1:")
    assert up.stdout.strip() in status.stdout
    assert (kept.returncode, down.returncode) == (0, 0)
    assert (again.returncode, again.stdout) == (0, "5\n")


def test_a_server_in_the_foreground_ends_by_a_signal_and_refuses_a_second(bare: Path) -> None:
    program = [*ROOST, "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "server.started" in server.stderr.readline()
        second = command("serve", "--listen", "127.0.0.1:0")
        told = command("status")
        server.terminate()
        rest = server.stderr.read()

    assert (server.returncode, second.returncode, told.returncode) == (0, 1, 0), rest
    assert "another server runs" in second.stderr
    assert "hint: " in second.stderr
    assert command("status").returncode == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--listen", "0.0.0.0:0"], "refusing to serve plain HTTP"),
        (["--listen", "nowhere"], "not an address"),
        (["--listen", "192.0.2.1:1", "--insecure-http"], "cannot listen"),
        (["--engine", "none"], "no engine"),
        (["--config", "/nowhere.toml"], "no file"),
    ],
)
def test_a_server_that_cannot_serve_says_why(bare: Path, options: list[str], says: str) -> None:
    done = command("serve", *options)

    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_are_for_their_owner_alone(bare: Path) -> None:
    command("up")

    for name in ("admin.json", "server.json", "secrets.key"):
        assert (bare / name).stat().st_mode & 0o777 == 0o600, name
    admin = json.loads((bare / "admin.json").read_text())
    assert admin["secret_key"].encode() not in (bare / "roost.db").read_bytes()
    assert admin["token"].encode() not in (bare / "roost.db").read_bytes()


def test_the_sdk_reads_as_the_readme_says(bare: Path) -> None:
    with roost.session("class-7") as s:
        s.run("x = 20")
        value = s.run("x + 1")
        run = s.start("for i in range(3): print(i)")
        events = list(run.events())
        failed = s.run("1/0")
        asked = s.run("print(input('n? '))", answer=["7"])

    assert value.text == "21"
    assert "".join(event.data for event in events if event.kind is EventKind.STDOUT) == "0\n1\n2\n"
    assert (failed.exit_code, failed.status, failed.stderr.count("Traceback")) == (1, RunStatus.ERROR, 1)
    assert asked.text == "7\n"
    assert command("ps").stdout == ""


def test_files_and_folders_of_any_size_are_copied(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "big").write_bytes(os.urandom(3 << 20))
    (tmp_path / "in" / "deep" / "ü 1").write_text("hi")
    with roost.session() as s:
        s.upload(tmp_path / "in")
        s.upload(tmp_path / "in" / "big", "other/name")
        same = s.run("open('in/big', 'rb').read() == open('other/name', 'rb').read()").text
        folder = s.download("in", tmp_path / "out")
        file = s.download("/home/work/other/name", tmp_path / "name")

    assert same == "True"
    assert (folder / "deep" / "ü 1").read_text() == "hi"
    assert file.read_bytes() == (folder / "big").read_bytes() == (tmp_path / "in" / "big").read_bytes()


def test_the_sdk_is_there_for_async_code_too(bare: Path) -> None:
    async def both() -> list[str]:
        async with roost.async_session("class-7", keep=True) as s:
            await s.run("x = 1")
        async with roost.async_session("class-7") as s:
            assert s.existed
            return [(await s.run("x + 1")).text, (await s.run("print('a')")).text]

    assert asyncio.run(both()) == ["2", "a\n"]


def test_the_compatible_face_works_with_what_the_server_wrote(bare: Path) -> None:
    from ai.backend.client.exceptions import BackendAPIError
    from ai.backend.client.session import Session

    command("up")
    with Session() as api:
        session = api.ComputeSession.get_or_create("python", name="class-8")
        again = api.ComputeSession.get_or_create("python", name="class-8")
        result = session.execute(code="1+1", mode="query")
        (bare / "hello.txt").write_text("hello")
        session.upload([bare / "hello.txt"], basedir=bare)
        asked = session.execute(code="print(open('hello.txt').read(), input('? '))")
        answered = session.execute(asked["runId"], "you", mode="input")
        files = json.loads(session.list_files(".")["files"])
        info = session.get_info()
        logs = session.get_logs()
        session.interrupt()
        stats = session.destroy()
        with pytest.raises(BackendAPIError) as missing:
            session.get_info()

    assert (session.created, again.created, again.id) == (True, False, session.id)
    assert (result["status"], result["console"]) == ("finished", [["stdout", "2"]])
    assert asked["status"] == "waiting-input"
    assert answered["console"] == [["stdout", "hello you\n"]]
    assert [entry["filename"] for entry in files] == ["hello.txt"]
    assert info["status"] == "RUNNING"
    assert "hello you" in logs["result"]["logs"]
    assert stats["stats"]["status"] == "terminated"
    assert missing.value.status == 404


def test_the_example_prints_its_table_and_fetches_its_chart(bare: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/penguins/run.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("Adelie")] == [["151", "3700.7"]]
    assert done.stdout.count("ms of CPU") == 3
    assert (ROOT / "examples/penguins/out/chart.svg").read_text().count("<rect") == 4


def read_until(descriptor: int, wanted: bytes, timeout_s: float = 30.0) -> bytes:
    """What a terminal shows, until this appears."""
    seen = b""
    deadline = time.monotonic() + timeout_s
    while wanted not in seen:
        assert select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0], seen
        seen += os.read(descriptor, 4096)
    return seen
