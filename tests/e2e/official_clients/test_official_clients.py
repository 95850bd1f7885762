"""Official clients work against our server, and our SDK says the same as they do."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.official_clients.environments import PINS, python_of
from tests.servers import Caller

PROGRAM = Path(__file__).with_name("program.py")


def environment(server: Caller, endpoint: str, home: Path) -> dict[str, str]:
    """All that a client is told."""
    return {
        "BACKEND_ENDPOINT": endpoint,
        "BACKEND_ACCESS_KEY": server.target.access_key,
        "BACKEND_SECRET_KEY": server.target.secret_key,
        "HOME": str(home),
        "PYTHONUTF8": "1",
    }


async def run_program(python: Path, server: Caller, endpoint: str, output: Path) -> str:
    """Run the program to its end; what it wrote to stderr, empty where it succeeded."""
    process = await asyncio.create_subprocess_exec(
        str(python),
        str(PROGRAM),
        str(output),
        env=environment(server, endpoint, output.parent),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.kill()
    return said.decode() or str(process.returncode) if process.returncode else ""


_seen_by_ours: list[dict[str, Any]] = []


@pytest.fixture
async def ours(server: Caller, tmp_path: Path) -> dict[str, Any]:
    """What our SDK sees, which is the same for every server."""
    if not _seen_by_ours:
        output = tmp_path / "ours.json"
        assert await run_program(Path(sys.executable), server, server.target.endpoint, output) == ""
        _seen_by_ours.append(json.loads(output.read_text()))
    return dict(_seen_by_ours[0])


@pytest.mark.parametrize("version", PINS)
async def test_an_official_client_sees_what_ours_sees(server: Caller, ours: Any, tmp_path: Path, version: str) -> None:
    output = tmp_path / "theirs.json"

    said = await run_program(python_of(version), server, server.target.endpoint, output)

    assert said == ""
    theirs = json.loads(output.read_text())
    assert theirs | {"version": None} == ours | {"version": None}


async def test_what_all_clients_see_is_what_the_specification_says(ours: Any) -> None:
    done = [["clean-finished", 0], ["build-finished", 0]]
    batches = ours["batches"]
    assert batches["stages"] == {
        "told": [*done, ["waiting-input", None], ["finished", 4]],
        "stdout": "c\ngot me\n",
        "stderr": "b\n",
    }
    assert batches["skipped"]["told"] == [*done, ["finished", 0]]
    assert batches["failing build"]["told"][1:] == [["build-finished", 5], ["finished", 127]]
    assert batches["failing build"]["stdout"] == ""
    assert ours["completions"]["asked"]["result"] == {"status": "finished", "completions": ["colourful"]}
    assert ours["lives"]["restarted"] == "k False\n"
    assert ours["lives"]["renamed"][:2] == [False, True]
    assert ours["lives"]["later"] == ["PENDING", "cancelled"]
    assert ours["ended"][0] == "terminated"
    # An ordinary user's host measures no session.
    assert ({"cpu_used", "mem"} < set(ours["ended"][1])) == (os.getuid() == 0)


CLIENTS = (*PINS, "ours")


class Command:
    """The command line of one client, in a folder of its own."""

    def __init__(self, version: str, server: Caller, home: Path) -> None:
        ours = [sys.executable, "-c", "from ai.backend.client.cli.main import main; main(prog_name='backend.ai')"]
        self._program = ours if version == "ours" else [str(python_of(version).with_name("backend.ai"))]
        self._environ = environment(server, server.target.endpoint, home)
        self._home = home

    async def __call__(self, *arguments: str, stdin: str = "") -> tuple[int | None, str]:
        """The exit code, and all that was said."""
        process = await asyncio.create_subprocess_exec(
            *self._program,
            *arguments,
            cwd=self._home,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return process.returncode, said.decode()


@pytest.mark.parametrize("version", CLIENTS)
async def test_the_commands_of_every_client_work_on_sessions(server: Caller, tmp_path: Path, version: str) -> None:
    command = Command(version, server, tmp_path)
    (tmp_path / "a.txt").write_text("content")

    created = await command("session", "create", "-t", "official-1", "-e", "A=1", "python")
    session = (await server("GET", "/session/official-1")).body
    uploaded = await command("session", "upload", "official-1", "a.txt")
    listed = await command("session", "ls", "official-1", ".")
    (tmp_path / "down").mkdir()
    downloaded = await command("session", "download", "official-1", "a.txt", "--dest", "down")
    ran = await command("run", "-t", "official-1", "-c", "import os; print('A is', os.environ['A'])", "python")
    logs = await command("session", "logs", "official-1")
    restarted = await command("session", "restart", "official-1")
    ended = await command("session", "destroy", "official-1")
    missing = await command("session", "destroy", "official-1")

    assert session["status"] == "RUNNING"
    for status, said in (created, uploaded, listed, downloaded, ran, logs, restarted, ended):
        assert status == 0, said
    assert "a.txt" in listed[1]
    assert (tmp_path / "down/a.txt").read_text() == "content"
    assert "A is 1" in ran[1]
    assert "A is 1" in logs[1]
    assert missing[0] == 1
    assert (await server("GET", "/session")).body == []


@pytest.mark.parametrize("version", CLIENTS)
async def test_the_commands_of_every_client_run_stages_on_files(server: Caller, tmp_path: Path, version: str) -> None:
    command = Command(version, server, tmp_path)
    (tmp_path / "main.py").write_text("import helper\nprint('hi', input('who? '), helper.x)")
    (tmp_path / "helper.py").write_text("x = 7")

    ran = await command("run", "--rm", "--build", "echo built", "python", "main.py", "helper.py", stdin="Ann\n")
    swept = await command(
        "run", "--rm", "-t", "official-2", "-e", "A=$a", "--env-range", "a=case:x,y", "--build", "", "--exec",
        "printenv A; echo $e", "--exec-range", "e=range:1,2", "python", "helper.py",
    )  # fmt: skip

    assert ran[0] == 0, ran
    assert "built" in ran[1]
    assert "hi Ann 7" in ran[1]
    assert swept[0] == 0, swept
    logs = tmp_path / ".cache/backend.ai/client-logs"
    assert sorted(path.read_text().strip() for path in logs.glob("*.stdout.log")) == ["x\n1", "y\n1"]
    assert (await server("GET", "/session")).body == []


@pytest.mark.parametrize("version", CLIENTS)
async def test_the_commands_of_every_client_keep_templates(server: Caller, tmp_path: Path, version: str) -> None:
    command = Command(version, server, tmp_path)
    kernel = {"image": "python", "environ": {"A": "1"}}
    template = {"api_version": "v1", "kind": "taskTemplate", "metadata": {"name": "t-1"}, "spec": {"kernel": kernel}}
    (tmp_path / "template.json").write_text(json.dumps([{"template": template}]))

    created = await command("session-template", "create", "-f", "template.json")
    [item] = (await server("GET", "/template/session")).body
    listed = await command("sesstpl", "list")
    read = await command("sesstpl", "get", item["id"], "-f", "json")
    numbers = ("--max-wait", "0", "--cluster-size", "1")  # the command of 21.09 breaks off without them
    made = await command("session", "create-from-template", "-t", "official-1", "--no-env", *numbers, item["id"])
    assert made[0] == 0, made
    environ = (await server("GET", "/session/official-1")).body["environ"]
    deleted = await command("sesstpl", "delete", "-f", item["id"])

    for status, said in (created, listed, read, made, deleted):
        assert status == 0, said
    assert "t-1" in listed[1]
    assert "taskTemplate" in read[1]
    assert "A" not in str(environ)
    assert (await server("GET", "/template/session")).body == []


@pytest.mark.parametrize("version", PINS)
async def test_the_official_command_runs_code_and_passes_input_on(server: Caller, tmp_path: Path, version: str) -> None:
    command = str(python_of(version).with_name("backend.ai"))
    arguments = ("run", "--rm", "-c", "print('hi', input('who? '))", "python")

    process = await asyncio.create_subprocess_exec(
        command,
        *arguments,
        env=environment(server, server.target.endpoint, tmp_path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(b"Ann\n"), 60)

    assert process.returncode == 0, said.decode()
    assert "who? hi Ann" in said.decode()
    assert "Cleaned up the session" in said.decode()
    assert (await server("GET", "/session")).body == []


@pytest.mark.parametrize("field", ["sessionId", "console", "files", "type"])
async def test_a_renamed_field_is_noticed(server: Caller, ours: Any, tmp_path: Path, field: str) -> None:
    output = tmp_path / "renamed.json"
    async with renaming(server, field) as endpoint:
        said = await run_program(python_of("21.9.5"), server, endpoint, output)

    assert said or json.loads(output.read_text()) != ours


@asynccontextmanager
async def renaming(server: Caller, field: str) -> AsyncIterator[str]:
    """A proxy before the server that gives one field of every JSON answer another name."""

    async def forward(request: web.Request) -> web.Response:
        url = server.target.endpoint + request.raw_path
        async with server.http.request(
            request.method, url, data=await request.read(), headers=request.headers, skip_auto_headers=["Content-Type"]
        ) as raw:
            body = await raw.read()
            if raw.content_type.endswith("json"):
                body = body.replace(f'"{field}":'.encode(), f'"{field}X":'.encode())
            kept = {"Content-Type": raw.headers["Content-Type"]} if "Content-Type" in raw.headers else {}
            return web.Response(status=raw.status, body=body, headers=kept)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        [(host, port)] = [address[:2] for address in runner.addresses]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
