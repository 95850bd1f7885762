"""Handles: `roost.session()` and `roost.async_session()`, against a server on loopback."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import roost
from roost.client import api
from roost.client.api import Target
from roost.client.errors import Unreachable
from roost.wire.errors import InvalidParameters, NotAuthenticated, SessionNotFound
from roost.wire.runs import EventKind, InterruptOutcome, RunStatus
from tests.unit.client_server import ACCESS_KEY, SECRET_KEY, TOKEN, ClientServer, ServedRun


@pytest.fixture
def server() -> Iterator[ClientServer]:
    with ClientServer() as running:
        yield running


@pytest.fixture(params=["token", "signature"])
def target(server: ClientServer, request: pytest.FixtureRequest) -> Target:
    if request.param == "token":
        return Target(endpoint=server.endpoint, token=TOKEN)
    return Target(endpoint=server.endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY)


def test_run_sums_up_what_happened(server: ClientServer, target: Target) -> None:
    with roost.session("class-7", target=target) as s:
        assert server.sessions == {"class-7": s.id}
        result = s.run("hello")
        failed = s.run("fails")
    assert (result.text, result.stdout, result.exit_code, result.status) == ("21", "hello\n", 0, RunStatus.OK)
    assert (result.cost.cpu_s, result.cost.peak_bytes) == (0.5, 1024)
    assert (failed.stderr, failed.exit_code, failed.status) == ("Traceback:\nValueError: no\n", 1, RunStatus.ERROR)
    assert server.sessions == {}


def test_displays_are_in_order_and_updates_take_their_places(server: ClientServer, target: Target) -> None:
    with roost.session("class-7", target=target) as s:
        result = s.run("shows")
        plain = s.run("hello")
    assert [bundle["text/plain"] for bundle in result.display] == ["again", "other", "new"]
    assert (result.html, result.png) == ("<b>", b"PNG2")
    assert plain.display == [{"text/plain": "21"}]
    assert (plain.html, plain.png) == (None, None)


async def test_run_in_an_async_session(server: ClientServer, target: Target) -> None:
    async with roost.async_session("class-7", target=target) as s:
        run = await s.start("many")
        numbers = [event.data async for event in run.events() if event.kind is EventKind.STDOUT]
        assert (await s.run("asks", answer=["Ada"])).stdout == "before\nhi Ada\n"
    assert numbers == [f"{number}\n" for number in range(50)]
    assert server.sessions == {}


def test_a_session_that_was_there_or_is_kept_stays(server: ClientServer, target: Target) -> None:
    with roost.session("class-7", keep=True, target=target) as s:
        assert not s.existed
    with roost.session("class-7", target=target) as s:
        assert s.existed
    assert "class-7" in server.sessions


def test_events_continue_across_lost_connections(server: ClientServer, target: Target) -> None:
    server.cut_after = 7
    with roost.session(target=target) as s:
        events = list(s.start("many").events())
        assert [event.seq for event in events] == list(range(1, 52))
        assert "".join(str(event.data) for event in events[:-1]) == "".join(f"{n}\n" for n in range(50))
        run = s.get_run(s.start("many").id)
        assert [event.seq for event in run.events(after=48)] == [49, 50, 51]


def test_a_local_server_that_was_started_anew_is_found_at_its_new_port(tmp_path: Path) -> None:
    """1. a run asks for a line; 2. its server goes, and comes back elsewhere; 3. line and events reach it there."""
    seen = []
    with contextlib.ExitStack() as opened:
        first = opened.enter_context(ClientServer())
        announce(tmp_path, first.endpoint)
        target = Target(endpoint=first.endpoint, token=TOKEN, data_dir=tmp_path)
        with roost.session("class-7", keep=True, target=target) as s:
            run = s.start("asks")
            events = run.events()
            seen += [next(events), next(events)]
            opened.close()
            second = opened.enter_context(ClientServer())
            second.sessions = first.sessions
            second.runs = {name: ServedRun(run.code, list(run.events)) for name, run in first.runs.items()}
            announce(tmp_path, second.endpoint)
            run.input("Ada")
            seen += events

    assert first.endpoint != second.endpoint
    assert [event.seq for event in seen] == [1, 2, 3, 4, 5]
    assert seen[-1].kind is EventKind.END


def announce(data_dir: Path, endpoint: str) -> None:
    """Say that this process serves there."""
    started = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    admin = {"endpoint": endpoint, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "token": TOKEN}
    (data_dir / "admin.json").write_text(json.dumps(admin))
    server = {"endpoint": endpoint, "pid": os.getpid(), "start_time": int(started)}
    (data_dir / "server.json").write_text(json.dumps(server))


def test_a_start_whose_answer_is_lost_is_the_same_run(server: ClientServer, target: Target) -> None:
    server.lose_starts = 2
    with roost.session(target=target) as s:
        assert s.run("hello").text == "21"
    assert len(server.runs) == 1


def test_only_a_server_that_has_answered_is_waited_for_long(
    server: ClientServer, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "UNKNOWN_FOR_S", 0.0)
    server.lose_creations = 1
    with pytest.raises(Unreachable), roost.session("class-7", target=target):
        pass
    with roost.session("class-7", target=target) as s:
        server.lose_starts = 2
        assert s.run("hello").text == "21"
    assert [path for _, path in server.requests].count("/session") == 2


def test_prompts_are_answered_or_end(target: Target) -> None:
    asked = []

    def answer(text: str, is_password: bool) -> str:
        asked.append((text, is_password))
        return "Ada"

    with roost.session(target=target) as s:
        assert s.run("asks", answer=answer).stdout == "before\nhi Ada\n"
        assert "EOFError" in s.run("asks").stderr
        run = s.start("asks")
        for event in run.events():
            if event.kind is EventKind.PROMPT:
                run.input("Eve")
        assert run.result().stdout == "before\nhi Eve\n"
    assert asked == [("name? ", False)]


def test_interrupt(target: Target) -> None:
    with roost.session(target=target) as s:
        run = s.start("waits")
        assert run.interrupt() is InterruptOutcome.SENT
        assert (run.result().status, run.result().exit_code) == (RunStatus.INTERRUPTED, 130)


def test_files(server: ClientServer, target: Target, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,2\n")
    with roost.session(target=target) as s:
        s.upload(tmp_path / "a.csv")
        s.upload(tmp_path / "a.csv", "data/ü b.csv")
        server.files["plain"] = b"x"
        assert s.download("plain", tmp_path / "new" / "file") == tmp_path / "new" / "file"
    assert server.files == {"a.csv": b"1,2\n", "data/ü b.csv": b"1,2\n", "plain": b"x"}
    assert (tmp_path / "new" / "file").read_bytes() == b"x"


def test_errors_come_back_as_what_the_server_raised(server: ClientServer, target: Target) -> None:
    with roost.session("class-7", target=target) as s:
        server.sessions.clear()
        with pytest.raises(SessionNotFound) as caught:
            s.run("hello")
    assert caught.value.hint is not None
    wrong = Target(endpoint=server.endpoint, token="wrong")
    with pytest.raises(NotAuthenticated), roost.session(target=wrong):
        pass
    with pytest.raises(Unreachable), roost.session(target=Target(endpoint="http://127.0.0.1:1", token="t")):
        pass
    with pytest.raises(InvalidParameters):
        roost.session("no")


def test_a_handle_outside_its_block_says_so(target: Target) -> None:
    s = roost.session("class-7", target=target)
    with pytest.raises(RuntimeError, match="block"):
        s.run("hello")
