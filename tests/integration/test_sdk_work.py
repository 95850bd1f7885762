"""What the SDK does in a session: batches, limits of time, interrupts, completions, files of any size."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost import SessionSettings
from roost.client.blocking import session
from roost.client.config import APIConfig
from roost.client.handle import AsyncSessionHandle, async_session
from roost.client.session import AsyncSession
from roost.wire.runs import EventKind, InterruptOutcome, RunStatus
from tests.servers import Caller


@pytest.fixture
async def handle(server: Caller) -> AsyncIterator[AsyncSessionHandle]:
    settings = SessionSettings(env={"COLOUR": "teal"}, tag="t")
    async with async_session("class-7", settings=settings, target=server.target) as opened:
        yield opened


@pytest.fixture
async def api(server: Caller) -> AsyncIterator[AsyncSession]:
    target = server.target
    config = APIConfig(endpoint=target.endpoint, access_key=target.access_key, secret_key=target.secret_key)
    async with AsyncSession(config=config) as opened:
        yield opened


async def test_the_stages_of_a_batch_run_are_told_as_they_end(handle: AsyncSessionHandle) -> None:
    told: list[tuple[str, int]] = []

    done = await handle.run_batch(
        "true", "echo $COLOUR", "cat; exit 3", on_stage=lambda *stage: told.append(stage), answer=["line"]
    )
    failed = await handle.run_batch(build="false", exec="echo never")

    assert told == [("clean", 0), ("build", 0)]
    assert (done.stages, done.exit_code, done.stdout) == ({"clean": 0, "build": 0}, 3, "teal\nline\n")
    assert (failed.stages["build"], failed.exit_code, failed.stdout) == (1, 127, "")


async def test_a_run_ends_when_its_time_is_up(handle: AsyncSessionHandle) -> None:
    query = await handle.run("import time\nwhile True: time.sleep(0.01)", timeout_s=0.2)
    batch = await handle.run_batch(exec="sleep 60", timeout_s=0.2)

    assert (query.status, query.exit_code) == (RunStatus.EXEC_TIMEOUT, 124)
    assert (batch.status, batch.exit_code) == (RunStatus.EXEC_TIMEOUT, 124)


async def test_an_interrupt_with_grace_says_what_came_of_it(handle: AsyncSessionHandle) -> None:
    heeds = await handle.start("import time\nprint('on', flush=True)\nwhile True: time.sleep(0.01)")
    await until_output(heeds)
    assert await heeds.interrupt(grace_s=30) is InterruptOutcome.INTERRUPTED
    assert await heeds.interrupt(grace_s=0) is InterruptOutcome.FINISHED

    deaf = await handle.start(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on', flush=True)\nwhile True: pass"
    )
    await until_output(deaf)
    assert await deaf.interrupt(grace_s=0.2) is InterruptOutcome.ESCALATED


async def until_output(run: object) -> None:
    async for event in run.events():  # type: ignore[attr-defined]
        if event.kind is EventKind.STDOUT:
            return


async def test_completions_are_words_of_the_session(handle: AsyncSessionHandle) -> None:
    await handle.run("colourful = 1")

    assert "colourful" in await handle.complete("x = 1\ncolou")
    assert await handle.complete("nothing_like_it") == []


async def test_the_blocking_handle_does_the_same(server: Caller) -> None:
    def use() -> None:
        told: list[str] = []
        with session("class-7", target=server.target) as s:
            result = s.run_batch(build="true", exec="echo hi", on_stage=lambda stage, code: told.append(stage))
            assert (result.stdout, told) == ("hi\n", ["clean", "build"])
            assert "print" in " ".join(s.complete("pri"))
            assert s.run("while True: pass", timeout_s=0.2).exit_code == 124

    await asyncio.to_thread(use)


async def test_files_beyond_the_limits_of_the_compatible_form(
    api: AsyncSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in dir").mkdir()
    (tmp_path / "in dir" / "big ü").write_bytes(os.urandom(3 << 20))
    for number in range(25):
        (tmp_path / "in dir" / f"n{number}").write_text(str(number))
    compute = await api.ComputeSession.get_or_create("python", name="class-8")

    monkeypatch.chdir(tmp_path)
    await compute.upload(["in dir/n1"], basedir="in dir")  # from here
    monkeypatch.chdir("/")
    await compute.upload(["in dir"], basedir=tmp_path)  # from there
    folder = await compute.download(["in dir"], dest=tmp_path / "out")
    file = await compute.download(["in dir/n3", "/home/work/in dir/n4"], dest=tmp_path / "out2")

    assert (tmp_path / "out/in dir/big ü").read_bytes() == (tmp_path / "in dir/big ü").read_bytes()
    assert {"in dir/n24", "in dir/big ü"} < set(folder["file_names"])
    assert file == {"file_names": ["n3", "n4"]}
    assert (tmp_path / "out2/n4").read_text() == "4"
    assert (await compute.execute(code="open('n1').read()"))["console"] == [["stdout", "'1'"]]


async def test_batches_over_the_poll_and_the_stream(api: AsyncSession) -> None:
    compute = await api.ComputeSession.get_or_create("python", name="class-8")
    opts = {"clean": None, "build": "echo b", "exec": "read x; echo got $x; exit 2"}

    polled = await compute.execute("r1", mode="batch", opts=opts)
    statuses = [polled["status"]]
    while polled["status"] not in ("finished", "exec-timeout"):
        mode, code = ("input", "me") if polled["status"] == "waiting-input" else ("continue", "")
        polled = await compute.execute("r1", code, mode=mode)
        statuses.append(polled["status"])
    streamed = []
    async with compute.stream_execute(mode="batch", opts=opts) as stream:
        async for message in stream:
            frame = message.json()
            streamed.append((frame["status"], frame["exitCode"]))
            if frame["status"] == "waiting-input":
                await stream.send_str("me")

    told = [status for status in statuses if status != "continued"]
    assert told == ["clean-finished", "build-finished", "waiting-input", "finished"]
    assert polled["exitCode"] == 2
    assert [pair for pair in streamed if pair[0] != "continued"] == [
        ("clean-finished", 0),
        ("build-finished", 0),
        ("waiting-input", None),
        ("finished", 2),
    ]


async def test_creations_and_ends_of_sessions_that_depend_on_each_other(api: AsyncSession) -> None:
    create = api.ComputeSession.get_or_create
    first = await create("python", name="class-1", tag="x", bootstrap_script="echo here > made", envs={"A": "1"})
    second = await create(
        "python",
        name="class-2",
        type_="batch",
        startup_command="true",
        starts_at="1d",
        enqueue_only=True,
        dependencies=[str(first.id)],
    )

    graph = await second.get_dependency_graph()
    ended = await first.destroy(recursive=True)

    assert (second.status, graph["depends_on"][0]["session_name"]) == ("PENDING", "class-1")
    assert [one["stats"]["status"] for one in ended] == ["terminated", "cancelled"]
