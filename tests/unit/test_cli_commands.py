"""The commands, as processes, against a server on loopback."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT

import pytest

from roost.wire.versions import CLIENT_VERSION, SERVER_VERSION
from tests.unit.client_server import ACCESS_KEY, SECRET_KEY, ClientServer

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def server() -> Iterator[ClientServer]:
    with ClientServer() as running:
        running.is_roost = True
        yield running


def environ(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BACKEND_", "SORNA_"))}
    return {**kept, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1", **more}


def signed_in(server: ClientServer) -> dict[str, str]:
    return environ(BACKEND_ENDPOINT=server.endpoint, BACKEND_ACCESS_KEY=ACCESS_KEY, BACKEND_SECRET_KEY=SECRET_KEY)


def roost(env: dict[str, str], *args: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "roost", *args], input=stdin, capture_output=True, text=True, timeout=60, env=env
    )
    return done.returncode, done.stdout, done.stderr


def test_run_prints_what_was_written_and_not_the_last_value(server: ClientServer) -> None:
    assert roost(signed_in(server), "run", "python", "-c", "hello") == (0, "hello\n", "")
    assert server.bodies[-1]["options"] == {"echo": False}
    assert server.sessions == {}


def test_run_prints_the_text_of_displays_and_what_they_lack(server: ClientServer) -> None:
    status, stdout, stderr = roost(signed_in(server), "run", "python", "-c", "shows")
    assert (status, stdout) == (0, "drawn\nother\nagain\nnew\n")
    assert stderr == "note: too long to be shown: text/html of 2000000 bytes\n"


@pytest.mark.parametrize(("code", "status"), [("fails", 1), ("exits", 7), ("dies", 137)])
def test_run_exits_as_the_program_does(server: ClientServer, code: str, status: int) -> None:
    found, stdout, stderr = roost(signed_in(server), "run", "python", "-c", code)
    assert (found, stdout) == (status, "")
    assert ("ValueError: no" in stderr) == (code == "fails")
    assert ("error: the interpreter died\nhint: run it again" in stderr) == (code == "dies")


def test_run_reads_answers_from_the_pipe_until_it_ends(server: ClientServer) -> None:
    assert roost(signed_in(server), "run", "python", "-c", "asks", stdin="Ada\n") == (0, "before\nhi Ada\n", "name? ")
    status, stdout, stderr = roost(signed_in(server), "run", "python", "-c", "asks")
    assert (status, stdout) == (1, "before\n")
    assert "EOFError" in stderr


def test_run_takes_a_file_and_keeps_a_named_session(server: ClientServer, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("hello")
    (tmp_path / "data.csv").write_text("1,2")
    files = [str(tmp_path / "main.py"), str(tmp_path / "data.csv")]
    assert roost(signed_in(server), "run", "python", *files, "--name", "class-7")[:2] == (0, "hello\n")
    assert server.files == {"main.py": b"hello", "data.csv": b"1,2"}
    assert list(server.sessions) == ["class-7"]


def test_an_interrupt_reaches_the_run(server: ClientServer) -> None:
    command = [sys.executable, "-m", "roost", "run", "python", "-c", "waits"]
    with subprocess.Popen(command, env=signed_in(server), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not any(path.endswith("events?after=0") for _, path in server.requests):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert server.sessions == {}


def test_ps_why_and_rm(server: ClientServer) -> None:
    assert roost(signed_in(server), "ps") == (0, "", "no sessions\n")
    server.sessions["class-7"] = "id"
    assert roost(signed_in(server), "ps") == (0, "class-7\tRUNNING\tpython\tusable\n", "")
    assert roost(signed_in(server), "why", "class-7") == (0, "10:00  the session was created\n", "")
    assert roost(signed_in(server), "rm", "class-7") == (0, "", "ended class-7\n")
    status, stdout, stderr = roost(signed_in(server), "rm", "class-7")
    assert (status, stdout) == (1, "")
    assert stderr == "error: There is no such live session\nhint: list your sessions with `roost ps`\n"


def test_usage_errors_exit_2(server: ClientServer) -> None:
    assert roost(signed_in(server), "run", "python")[0] == 2
    assert roost(signed_in(server), "dance")[0] == 2


def test_status_and_down_without_a_server(tmp_path: Path) -> None:
    env = environ(ROOST_DATA_DIR=str(tmp_path))
    status, stdout, stderr = roost(env, "status")
    assert (status, stdout) == (1, "")
    assert "hint: start one with `roost up`" in stderr
    status, stdout, stderr = roost(env, "--output", "json", "status")
    assert (status, list(json.loads(stdout)), stderr) == (1, ["error"], "")
    assert roost(env, "down") == (0, "", "no server was running\n")


def test_the_compatible_command_shows_its_configuration(server: ClientServer) -> None:
    command = [sys.executable, "-c", "from ai.backend.client.cli.main import main; main()", "config"]
    done = subprocess.run(command, capture_output=True, text=True, env=signed_in(server), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"API endpoint: {server.endpoint}\n" in done.stdout
    assert ACCESS_KEY in done.stdout
    assert SECRET_KEY not in done.stdout
    assert f"Client's API version: {CLIENT_VERSION}\n" in done.stdout
    assert f"Server's API version: {SERVER_VERSION}\n" in done.stdout
    assert f"Negotiated API version: {CLIENT_VERSION}\n" in done.stdout


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("abcdef" + "x" * 24 + "0123456789", "abcdef" + "*" * 24 + "0123456789"),
        ("too-short-to-show", "*" * 24),
        ("", "(none)"),
    ],
)
def test_the_compatible_config_masks_the_secret_key(secret: str, shown: str) -> None:
    env = environ(BACKEND_ENDPOINT="http://127.0.0.1:9", BACKEND_ACCESS_KEY="key", BACKEND_SECRET_KEY=secret)

    program = [sys.executable, "-c", "from ai.backend.client.cli.main import main; main()", "config"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, env=env)

    assert f"Secret key: {shown}\n" in done.stdout


NOTHING = [
    *(
        "rm ..",
        "restart ..",
        "why ..",
        "why .. --session class-7",
        "session logs ..",
        "session ls ..",
    ),
    *("session rename .. class-8", f"session upload .. {__file__}", "session download .. a"),
    *("image inspect ..", "image rm a/../../session", "image alias .. python"),
]


@pytest.mark.parametrize("command", NOTHING)
def test_what_nothing_is_called_is_refused_and_nothing_else_is_asked_for(server: ClientServer, command: str) -> None:
    status, _, stderr = roost(signed_in(server), *command.split())

    assert status != 0
    assert any(told in stderr for told in ("not a session: '..'", "there is no session '..'", "nothing is called"))
    assert {path for _, path in server.requests} <= {"/", "/manager/announcement", "/session?status=all"}
