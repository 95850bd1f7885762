"""Server, keeper or both are killed at every step of a launch (design: who outlives whom), and while a session ends.

The step is stopped at, not hit by chance: stopping.py. What comes back is the ordinary server.
"""

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.e2e.server_process import ServerProcess, keeper_pid, record_of, state_of
from tests.e2e.stopping import adapters, start_stopping_keeper
from tests.e2e.test_nothing_is_left import the_host
from tests.servers import Caller

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)


def nothing_is_recorded(data_dir: Path, session_id: str) -> bool:
    folder = data_dir / "sandboxes" / session_id
    return (folder / "home").is_dir() and not (folder / "sandbox.json").exists()


def no_pid_is_recorded(data_dir: Path, session_id: str) -> bool:
    record = record_of(data_dir, session_id)
    return (record["state"], record["pid"]) == ("launching", 0)


def a_child_waits_unrecorded(data_dir: Path, session_id: str) -> bool:
    return no_pid_is_recorded(data_dir, session_id) and bool(the_host(data_dir)["processes"])


def a_child_waits(data_dir: Path, session_id: str) -> bool:
    record = record_of(data_dir, session_id)
    return the_host(data_dir)["processes"] == {record["pid"]}


def no_first_process_is_recorded(data_dir: Path, session_id: str) -> bool:
    record = record_of(data_dir, session_id)
    return record["state"] == "launching" and bool(record["pid"]) and not record["init_pid"]


def it_runs(data_dir: Path, session_id: str) -> bool:
    return record_of(data_dir, session_id)["state"] == "running"


Seen = Callable[[Path, str], bool]
STEPS: dict[str, tuple[str, Seen]] = {
    "1 folder, home, group, socket": ("prepared", nothing_is_recorded),
    "1 sandbox.json": ("recorded", no_pid_is_recorded),
    "2 the child at the gate": ("gate", a_child_waits_unrecorded),
    "3 its pid is written": ("written", a_child_waits),
    "4 let go": ("spawned", no_first_process_is_recorded),
    "5 the runner listens": ("listening", no_first_process_is_recorded),
    "adopted, the row not written": ("adopted", it_runs),
}
OF_THE_KEEPER = ("gate", "written")
VICTIMS = ("server", "keeper", "server keeper")
LONG = (pytest.mark.soak, pytest.mark.skipif("ROOST_SOAK" not in os.environ, reason="`make soak` does it"))


def launches() -> list[Any]:
    """Every step with everyone who can die there; the server, and the keeper where it acts, outside a soak too."""
    return [
        pytest.param(step, victims, marks=() if victims == "server" or (acts and victims == "keeper") else LONG)
        for step, acts in ((step, point in OF_THE_KEEPER) for step, (point, _) in STEPS.items())
        for victims in VICTIMS
    ]


@pytest.mark.parametrize(("step", "victims"), launches())
async def test_a_launch_that_was_killed_is_completed_or_undone(
    data_dir: Path, tmp_path: Path, step: str, victims: str
) -> None:
    point, seen = STEPS[step]
    if point in OF_THE_KEEPER:
        start_stopping_keeper(data_dir, point)
    environ = adapters(tmp_path, point)
    with ServerProcess(data_dir, "--engine", "stopping", environ=environ) as server:
        async with server.caller() as caller:
            keeper = keeper_pid(data_dir)
            assert keeper is not None
            session_id = await enqueue(caller)
            await state_of(keeper if point in OF_THE_KEEPER else server.pid, "T")
            assert seen(data_dir, session_id)

            if "keeper" in victims:
                os.kill(keeper, signal.SIGKILL)
            if "server" in victims:
                server.kill()
            else:
                os.kill(server.pid, signal.SIGCONT)
                assert await settles(caller, data_dir, session_id) == "RUNNING"
    if "server" in victims:
        with ServerProcess(data_dir) as server:
            if "keeper" not in victims:
                os.kill(keeper, signal.SIGCONT)
            async with server.caller() as caller:
                assert await settles(caller, data_dir, session_id) == "RUNNING"


async def test_what_a_busy_keeper_was_asked_by_a_killed_server_is_undone(data_dir: Path, tmp_path: Path) -> None:
    """1. the keeper is stopped; 2. a server asks it for a child, and is killed; 3. the next server starts; 4. the
    keeper goes on, with the request of the first."""
    with ServerProcess(data_dir, "--engine", "stopping", environ=adapters(tmp_path, "asked")) as server:
        async with server.caller() as caller:
            keeper = keeper_pid(data_dir)
            assert keeper is not None
            os.kill(keeper, signal.SIGSTOP)
            session_id = await enqueue(caller)
            await server.stopped()
            assert no_pid_is_recorded(data_dir, session_id)
            server.kill()

    with ServerProcess(data_dir) as server:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4):  # a server that recovers before the keeper has done it is ready by now
                await server.announced()
        os.kill(keeper, signal.SIGCONT)
        async with server.caller() as caller:
            assert await settles(caller, data_dir, session_id) == "RUNNING"


@pytest.mark.parametrize("point", ["terminating", "destroyed"])
async def test_an_end_that_was_killed_is_completed(data_dir: Path, tmp_path: Path, point: str) -> None:
    environ = adapters(tmp_path, point)
    with ServerProcess(data_dir, "--engine", "stopping", environ=environ) as server:
        async with server.caller() as caller:
            session_id = await enqueue(caller)
            await reaches(caller, session_id, "RUNNING")
            ending = asyncio.create_task(caller("DELETE", f"/session/{session_id}"))
            await server.stopped()
            server.kill()
            await asyncio.gather(ending, return_exceptions=True)

    with ServerProcess(data_dir) as server:
        async with server.caller() as caller:
            ended = await reaches(caller, session_id, "TERMINATED")

    assert ended["reason"]["code"] == "user-requested"
    await assert_nothing_is_left(data_dir)


async def test_an_end_that_was_killed_while_it_swept_is_completed(data_dir: Path) -> None:
    fill = "for number in range(10_000): open(str(number), 'w').close()"
    with ServerProcess(data_dir) as server:
        async with server.caller() as caller:
            session_id = await enqueue(caller)
            await reaches(caller, session_id, "RUNNING")
            filled = await caller("POST", f"/session/{session_id}/runs", {"code": fill})
            await caller.events(session_id, filled.body["run_id"])
            waiting = await caller("POST", f"/session/{session_id}/runs", {"code": "input()"})
            first_process = os.pidfd_open(int(str(record_of(data_dir, session_id)["init_pid"])))
            ending = asyncio.create_task(caller("DELETE", f"/session/{session_id}"))
            await asyncio.to_thread(select.select, [first_process], [], [], 30)
            server.kill()
            os.close(first_process)
            await asyncio.gather(ending, return_exceptions=True)
            assert (data_dir / "sandboxes" / session_id).exists()

    with ServerProcess(data_dir) as server:
        async with server.caller() as caller:
            ended = await reaches(caller, session_id, "TERMINATED")
            events = await caller.events(session_id, waiting.body["run_id"])

    assert ended["reason"]["code"] == "user-requested"
    assert '"sandbox-lost"' in events[-1].data
    await assert_nothing_is_left(data_dir)


@pytest.mark.parametrize("point", ["prepared", "recorded", "spawned", "listening", "restarted"])
async def test_a_restart_that_was_killed_is_completed_and_keeps_the_files(
    data_dir: Path, tmp_path: Path, point: str
) -> None:
    with ServerProcess(data_dir) as server:
        async with server.caller() as caller:
            session_id = await enqueue(caller)
            await reaches(caller, session_id, "RUNNING")
            kept = await caller("POST", f"/session/{session_id}/runs", {"code": "open('kept', 'w').write('yes')"})
            await caller.events(session_id, kept.body["run_id"])
    with ServerProcess(data_dir, "--engine", "stopping", environ=adapters(tmp_path, point)) as server:
        async with server.caller() as caller:
            waiting = await caller("POST", f"/session/{session_id}/runs", {"code": "input()"})
            restarting = asyncio.create_task(caller("PATCH", f"/session/{session_id}"))
            await server.stopped()
            server.kill()
            await asyncio.gather(restarting, return_exceptions=True)

    with ServerProcess(data_dir) as server:
        async with server.caller() as caller:
            await reaches(caller, session_id, "RUNNING")
            events = await caller.events(session_id, waiting.body["run_id"])
            read = await caller("POST", f"/session/{session_id}/runs", {"code": "print(open('kept').read())"})
            written = await caller.events(session_id, read.body["run_id"])

            assert '"session-restarted"' in events[-1].data
            assert '"state_lost":true' in written[0].data
            assert "yes" in written[1].data
            assert await settles(caller, data_dir, session_id) == "RUNNING"


async def enqueue(caller: Caller) -> str:
    body = {"name": "class-7", "image": "python", "enqueueOnly": True}
    created = await caller("POST", "/session", body)
    return str(created.body["sessionId"])


async def reaches(caller: Caller, session_id: str, *states: str) -> Any:
    """Wait until the session is in one of these states."""
    async with asyncio.timeout(60):
        while True:
            listed = await caller("GET", "/session", params={"status": "all"})
            [session] = [one for one in listed.body if one["id"] == session_id]
            if session["status"] in states:
                return session
            await asyncio.sleep(0.05)


async def settles(caller: Caller, data_dir: Path, session_id: str) -> str:
    """The session runs and works, or is gone with a reason; of the half launch nothing is left."""
    session = await reaches(caller, session_id, "RUNNING", "CANCELLED", "TERMINATED")
    if session["status"] == "RUNNING":
        run = await caller("POST", f"/session/{session_id}/runs", {"code": "6 * 7"})
        events = await caller.events(session_id, run.body["run_id"])
        assert '"text":"42"' in events[-2].data
        await assert_it_is_alone(data_dir, session_id)
        assert (await caller("DELETE", f"/session/{session_id}")).status == 200
    else:
        assert session["reason"]["code"] == "failed-to-start"
        assert session["reason"]["sentence"]
    await assert_nothing_is_left(data_dir)
    return str(session["status"])


async def assert_it_is_alone(data_dir: Path, session_id: str) -> None:
    """One sandbox, with one socket, one group and one tree of processes."""
    record = record_of(data_dir, session_id)

    def others() -> set[int]:
        mine, found = {int(str(record["pid"]))}, processes(data_dir)
        while more := {pid for pid in found - mine if parent(pid) in mine}:
            mine |= more
        return found - mine

    await becomes_empty(others)
    host = the_host(data_dir)
    assert sockets(host) == {record["socket"]}
    assert {path.name for path in (data_dir / "sandboxes").iterdir()} == {session_id}
    assert all(str(name).endswith(session_id) for name in groups(host))


async def assert_nothing_is_left(data_dir: Path) -> None:
    """Only keeper and server remain."""
    await becomes_empty(lambda: processes(data_dir))
    host = the_host(data_dir)
    assert (host["groups"], sockets(host)) == (set(), set())
    assert list((data_dir / "sandboxes").iterdir()) == []
    assert str(data_dir) not in str(host["mounts"])


async def becomes_empty(processes: Callable[[], set[int]]) -> None:
    """Orphans of a killed keeper are zombies until the system's first process reaps them."""
    try:
        async with asyncio.timeout(5):
            while processes():
                await asyncio.sleep(0.02)
    except TimeoutError:
        states = [Path(f"/proc/{pid}/stat").read_text() for pid in processes()]
        raise AssertionError(f"these go on: {states}") from None


def sockets(host: Any) -> set[str]:
    return {name for name in host["sockets"] if name not in ("keeper.sock", "keeper.lock")}


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def processes(data_dir: Path) -> set[int]:
    found = the_host(data_dir)["processes"]
    assert isinstance(found, set)
    return found


def groups(host: dict[str, object]) -> set[str]:
    found = host["groups"]
    assert isinstance(found, set)
    return found
