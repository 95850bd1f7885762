"""The agent with its keeper, in front of real sandboxes."""

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from roost.agent import sandboxes
from roost.agent.doctor import diagnose
from roost.agent.interpreters import find_interpreters
from roost.agent.layout import run_dir
from roost.agent.link import RunnerLink
from roost.agent.supervisor import LocalAgent
from roost.agent.sweep import remove_tree
from roost.runtimes.bubblewrap import BubblewrapRuntime, find_bwrap
from roost.runtimes.programs import first_closed
from roost.wire.errors import (
    AgentError,
    CannotEnforce,
    FileNotFoundInSession,
    Forbidden,
    LimitExceeded,
    RunAlreadyExists,
    RunNotFound,
    SessionNotFound,
    SessionNotRunning,
)
from roost.wire.ids import new_session_id
from roost.wire.runs import EventKind, RunSpec, RunState, RunStatus
from roost.wire.sandboxes import Limits, SandboxSpec, SandboxState
from tests.agents import end, end_of, events_of, output, run

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)


WRITE_EVERYWHERE = """
import os, time
for number in range(3, 256):
    try: os.write(number, b'x' * 256)
    except OSError: pass
time.sleep(600)
"""


def a_spec(runtime: str | None = None, **limits: int) -> SandboxSpec:
    return SandboxSpec(
        session_id=new_session_id(),
        interpreter=find_interpreters()[0],
        runtime=runtime,
        limits=Limits(**limits),  # type: ignore[arg-type]  # tests set numbers only
    )


@pytest.mark.parametrize("runtime", ["bubblewrap", "process"])
async def test_a_run_answers_and_state_is_kept(agent: LocalAgent, runtime: str) -> None:
    spec = a_spec(runtime)
    info = await agent.launch(spec)

    first = await run(agent, spec.session_id, "x = 20; print('hello')")
    second = await run(agent, spec.session_id, "x + 1")

    assert info.state is SandboxState.RUNNING
    assert output(first) == "hello\n"
    assert [event.data["text"] for event in second if event.kind is EventKind.RESULT] == ["21"]
    assert [event.seq for event in first] == list(range(1, len(first) + 1))


@pytest.mark.parametrize("runtime", ["bubblewrap", "process"])
async def test_the_environment_of_a_session_is_in_no_argument_list(agent: LocalAgent, runtime: str) -> None:
    secret = os.urandom(16).hex()
    spec = msgspec.structs.replace(a_spec(runtime), environ={"TOKEN": secret})
    await agent.launch(spec)

    known = await run(agent, spec.session_id, "import os; print(os.environ['TOKEN'])")
    processes = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since
            processes[path.parent.name] = path.read_bytes()

    assert output(known) == f"{secret}\n"
    assert str(agent._sandboxes.load(spec.session_id).init_pid) in processes
    assert [pid for pid, words in processes.items() if secret.encode() in words] == []


async def test_launching_twice_gives_the_first_sandbox(agent: LocalAgent) -> None:
    spec = a_spec()

    first, second = await agent.launch(spec), await agent.launch(spec)

    assert first.launched_at == second.launched_at


async def test_the_process_runtime_is_never_taken_silently(agent: LocalAgent) -> None:
    info = await agent.launch(a_spec())

    assert info.runtime == "bubblewrap"


async def test_a_named_limit_that_cannot_be_enforced_is_refused(agent: LocalAgent) -> None:
    spec = SandboxSpec(
        session_id=new_session_id(),
        interpreter=find_interpreters()[0],
        limits=Limits(scratch_bytes=1 << 20, named=frozenset({"scratch"})),
    )

    with pytest.raises(CannotEnforce, match="scratch"):
        await agent.launch(spec)

    assert list((agent._sandboxes.folder).iterdir()) == []


async def test_what_a_launch_says_is_for_its_owner_alone(agent: LocalAgent, data_dir: Path) -> None:
    mask = os.umask(0)
    try:
        spec = a_spec()
        await agent.launch(spec)
    finally:
        os.umask(mask)

    assert (data_dir / "sandboxes" / spec.session_id / "launch.log").stat().st_mode & 0o777 == 0o600


async def test_a_refused_launch_leaves_no_error_that_nobody_hears(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    monkeypatch.setattr(RunnerLink, "peer", lambda _: (1, 0))

    with pytest.raises(AgentError, match="in place of the runner"):
        await agent.launch(a_spec())
    gc.collect()

    assert unheard == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives sessions uids of their own")
async def test_a_bubblewrap_that_session_uids_cannot_reach_is_used_all_the_same(
    agent: LocalAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap = find_bwrap()
    assert bwrap is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy(bwrap, closed)
    monkeypatch.setenv("PATH", str(closed))
    spec = a_spec()

    [said] = [probe for probe in diagnose().runtimes if probe.runtime == "bubblewrap"]
    await agent.launch(spec)

    assert find_bwrap() == str(closed / "bwrap")
    assert said.available
    assert output(await run(agent, spec.session_id, "print(1)")) == "1\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives sessions uids of their own")
async def test_a_data_folder_that_session_uids_cannot_reach_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    agent = LocalAgent(closed / "data")
    await agent.open()

    with pytest.raises(AgentError, match=str(first_closed(closed))):
        await agent.launch(a_spec())
    await end(agent)


async def test_the_same_run_id_is_the_same_run(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)

    first = await agent.start(spec.session_id, RunSpec(run_id="once", code="print(1)"))
    again = await agent.start(spec.session_id, RunSpec(run_id="once", code="print(1)"))

    assert (first.created, again.created) == (True, False)
    assert output(await events_of(agent, spec.session_id, "once")) == "1\n"
    with pytest.raises(RunAlreadyExists):
        await agent.start(spec.session_id, RunSpec(run_id="once", code="print(2)"))


async def test_a_prompt_is_answered_once(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)
    await agent.start(spec.session_id, RunSpec(run_id="ask", code="print(input('name? ') + '!')"))
    page = await agent.read(spec.session_id, "ask", after=1, wait_s=10)
    assert page.run.state is RunState.WAITING

    await agent.feed(spec.session_id, "ask", prompt=1, text="Ada")
    await agent.feed(spec.session_id, "ask", prompt=1, text="Eve")

    events = await events_of(agent, spec.session_id, "ask")
    assert output(events) == "Ada!\n"
    assert [event.data for event in events if event.kind is EventKind.INPUT] == [{"prompt": 1, "text": "Ada"}]


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        ("import os; os._exit(137)", 137, "kernel-exited"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, "kernel-signalled"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139, "kernel-signalled"),
        ("import os, time; os.closerange(3, 256); time.sleep(600)", 137, "channel-closed"),
        ("import os; os.execv('/bin/sleep', ['sleep', '600'])", 137, "channel-closed"),
        (WRITE_EVERYWHERE, 137, "channel-broken"),
    ],
)
async def test_a_kernel_that_dies_ends_its_run_with_a_reason(
    agent: LocalAgent, code: str, exit_code: int, reason: str
) -> None:
    spec = a_spec()
    await agent.launch(spec)

    await run(agent, spec.session_id, code, "dies")
    after = await run(agent, spec.session_id, "print('alive')")

    end = await end_of(agent, spec.session_id, "dies")
    assert (end.status, end.exit_code) == (RunStatus.KERNEL_DIED, exit_code)
    assert end.reason is not None
    assert end.reason.code == reason
    assert after[0].data == {"state_lost": True}
    assert output(after) == "alive\n"


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count what processes read")
@pytest.mark.parametrize(
    ("code", "read", "written"),
    [
        ("x = 1", 0, 0),
        ("print('é')", 0, 3),
        ("import sys; print(1); sys.stderr.write('2'); print(3)", 0, 5),
        ("input()", 0, 0),
        ("open('file', 'wb').write(bytes(100_000)); None", 0, 100_000),
        ("x = open('/dev/zero', 'rb', buffering=0).read(70_000)", 70_000, 0),
        ("pid = os.fork()\nif pid == 0: os.write(file, bytes(5_000)); os._exit(0)\nos.waitpid(pid, 0); None", 0, 5_000),
    ],
)
async def test_a_run_is_told_what_it_read_and_wrote(agent: LocalAgent, code: str, read: int, written: int) -> None:
    spec = a_spec()
    await agent.launch(spec)
    await run(agent, spec.session_id, "import os; file = os.open('other', os.O_CREAT | os.O_WRONLY)")

    await agent.start(spec.session_id, RunSpec(run_id="moves", code=code))
    page = await agent.read(spec.session_id, "moves", after=1, wait_s=10)
    if page.run.prompt:
        await agent.feed(spec.session_id, "moves", prompt=1, text="x" * 1000)
    await events_of(agent, spec.session_id, "moves")

    cost = (await end_of(agent, spec.session_id, "moves")).cost
    assert (cost.read_bytes, cost.written_bytes) == (read, written)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count what processes read")
async def test_a_run_that_takes_the_place_of_the_counters_leaves_them_to_the_next(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)
    found = (
        "import os\n"
        "ours = [n for n in range(20, 256) if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "counters = [n for n in ours if os.readlink(f'/proc/self/fd/{n}').endswith('/io')]\n"
        "file = os.open('file', os.O_CREAT | os.O_RDWR)\n"
        "for n in counters: os.dup2(file, n)\n"
        "print(len(counters))"
    )

    taken = await run(agent, spec.session_id, found, "takes")
    after = await run(agent, spec.session_id, "os.write(counters[0], b'x' * 10); None", "goes on")
    await run(agent, spec.session_id, "os.write(counters[0], b'x' * 10); None", "is counted")

    assert output(taken) == "1\n"
    assert output(after) == ""
    assert (await end_of(agent, spec.session_id, "takes")).cost.written_bytes is None
    assert (await end_of(agent, spec.session_id, "is counted")).cost.written_bytes == 10


async def test_what_an_interpreter_that_died_read_is_not_known(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)

    await run(agent, spec.session_id, "open('file', 'wb').write(bytes(100_000))\nimport os; os._exit(1)", "dies")

    cost = (await end_of(agent, spec.session_id, "dies")).cost
    assert (cost.read_bytes, cost.written_bytes) == (None, None)


async def test_memory_limit_names_limit_and_peak(agent: LocalAgent) -> None:
    spec = a_spec(mem_bytes=128 << 20)
    info = await agent.launch(spec)
    if "mem" in info.isolation.not_enforced:
        pytest.skip("no writable memory cgroup here")

    await run(agent, spec.session_id, "x = bytearray(512 << 20)", "big")

    end = await end_of(agent, spec.session_id, "big")
    assert end.reason is not None
    assert (end.reason.code, end.reason.limit) == ("memory-limit", 128 << 20)
    assert end.reason.peak is not None
    assert end.reason.peak > 100 << 20
    assert output(await run(agent, spec.session_id, "print('alive')")) == "alive\n"


async def test_an_agent_that_comes_back_finds_run_and_variables(data_dir: Path) -> None:
    """1. a run counts; 2. the agent goes and a new one comes; 3. the reader goes on after what it saw."""
    first = LocalAgent(data_dir)
    await first.open()
    spec = a_spec()
    await first.launch(spec)
    code = "x = 7\nimport time\nfor i in range(300): print(i); time.sleep(0.005)"
    await first.start(spec.session_id, RunSpec(run_id="count", code=code))
    seen = (await first.read(spec.session_id, "count", after=5, wait_s=10)).events
    await first.aclose()

    second = LocalAgent(data_dir)
    await second.open()
    events = await events_of(second, spec.session_id, "count")

    assert seen[0].seq == 6
    assert output(events) == "".join(f"{i}\n" for i in range(300))
    assert output(await run(second, spec.session_id, "print(x)")) == "7\n"
    await end(second)


async def test_a_sandbox_that_dies_ends_its_runs_and_is_reported(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)
    await agent.start(spec.session_id, RunSpec(run_id="long", code="import time\ntime.sleep(600)"))
    await agent.read(spec.session_id, "long", after=0, wait_s=10)

    os.kill(agent._sandboxes.load(spec.session_id).init_pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        async for ended in agent.ended():
            assert (ended.session_id, ended.reason.code) == (spec.session_id, "self-terminated")
            break

    assert (await end_of(agent, spec.session_id, "long")).status is RunStatus.SANDBOX_LOST
    with pytest.raises(SessionNotRunning):
        await agent.start(spec.session_id, RunSpec(run_id="late", code="1"))


async def test_runs_have_ended_before_their_sandboxes_folder_goes(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an agent that dies in between leaves a run that never ends, and nothing that would tell of it."""
    spec = a_spec()
    await agent.launch(spec)
    await agent.start(spec.session_id, RunSpec(run_id="long", code="import time\ntime.sleep(600)"))
    await agent.read(spec.session_id, "long", after=0, wait_s=10)

    def dies(path: Path) -> None:
        raise OSError("here the agent dies")

    with monkeypatch.context() as patched:
        patched.setattr(sandboxes, "remove_tree", dies)
        with pytest.raises(OSError, match="dies"):
            await agent.destroy(spec.session_id)

    assert (await end_of(agent, spec.session_id, "long")).status is RunStatus.SANDBOX_LOST
    await agent.destroy(spec.session_id)


async def test_a_sandbox_that_dies_may_be_destroyed_as_soon_as_its_run_has_ended(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is still sweeping then; two sweeps of one folder would trip over each other."""
    spec = a_spec()
    await agent.launch(spec)
    await agent.start(spec.session_id, RunSpec(run_id="long", code="import time\ntime.sleep(600)"))
    await agent.read(spec.session_id, "long", after=0, wait_s=10)
    alone = threading.Lock()
    overlaps = []

    def sweep_slowly(path: Path) -> None:
        overlaps.append(not alone.acquire(blocking=False))
        time.sleep(0.2)
        remove_tree(path)
        if alone.locked():
            alone.release()

    monkeypatch.setattr(sandboxes, "remove_tree", sweep_slowly)
    os.kill(agent._sandboxes.load(spec.session_id).init_pid, signal.SIGKILL)
    await events_of(agent, spec.session_id, "long")
    await agent.destroy(spec.session_id)

    assert overlaps == [False, False]
    assert list(agent._sandboxes.folder.iterdir()) == []


async def test_who_comes_back_knows_how_a_sandbox_ended_meanwhile(data_dir: Path) -> None:
    first = LocalAgent(data_dir)
    await first.open()
    spec = a_spec()
    await first.launch(spec)
    await first.start(spec.session_id, RunSpec(run_id="long", code="import time; time.sleep(600)"))
    folder = first._sandboxes.folder / spec.session_id
    init_pid = first._sandboxes.load(spec.session_id).init_pid
    await first.aclose()
    os.kill(init_pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while not (folder / "exit.json").exists():
            await asyncio.sleep(0.01)

    second = LocalAgent(data_dir)
    await second.open()
    [lost] = await second.lost()
    events = await events_of(second, spec.session_id, "long")
    await end(second)

    assert (lost.session_id, lost.reason.code, lost.exit_code) == (spec.session_id, "self-terminated", 137)
    assert "status 137" in lost.reason.sentence
    assert events[-1].data["reason"]["sentence"] == lost.reason.sentence


async def test_destroy_leaves_nothing_but_the_log(agent: LocalAgent, data_dir: Path) -> None:
    spec = a_spec()
    await agent.launch(spec)
    nasty = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for s in range(1, 65):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(1)
    os._exit(0)
path = 'd'
for i in range(1500):
    os.mkdir('d'); os.chdir('d')
os.chdir('/home/work')
os.mkdir('locked'); open('locked/-rf', 'w').close(); os.chmod('locked', 0)
"""
    await run(agent, spec.session_id, nasty)
    init_pid = agent._sandboxes.load(spec.session_id).init_pid
    group = agent._sandboxes.group(spec.session_id)
    members = group.pids() if group is not None else [init_pid]

    await agent.destroy(spec.session_id)
    await agent.destroy(spec.session_id)

    assert [pid for pid in members if Path(f"/proc/{pid}").exists()] == []
    assert list((data_dir / "sandboxes").iterdir()) == []
    assert [path.name for path in run_dir(data_dir).glob("*.sock")] == ["keeper.sock"]
    if group is not None:
        assert not any(folder.exists() for folder in group.folders.values())
    assert (data_dir / "logs" / spec.session_id).exists()


async def test_files_stay_inside_the_home(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)
    files = agent.files(spec.session_id)
    await files.write("data/deep/a b.txt", b"hello")
    await run(
        agent, spec.session_id, "import os; os.symlink('/etc', 'out'); os.symlink('data', 'in'); os.mkfifo('pipe')"
    )

    listed = {info.filename for info in await files.list("/home/work")}

    assert listed == {"data", "out", "in", "pipe"}
    assert await files.read("/home/work/data/deep/a b.txt", max_bytes=5) == b"hello"
    assert output(await run(agent, spec.session_id, "open('data/deep/new', 'w').close(); print('owned')")) == "owned\n"
    with pytest.raises(LimitExceeded):
        await files.read("data/deep/a b.txt", max_bytes=4)
    with pytest.raises(FileNotFoundInSession):
        await files.read("nope", max_bytes=10)
    refused: list[Callable[[], object]] = []
    for path in ("../x", "/etc/passwd", "out/passwd", "in/deep", "data/../../x"):
        refused.append(lambda path=path: files.read(path, max_bytes=10))  # type: ignore[misc]
    for attempt in refused:
        with pytest.raises(Forbidden):
            await attempt()  # type: ignore[misc]


async def test_unknown_names_are_told_apart(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)

    with pytest.raises(SessionNotFound):
        await agent.start(new_session_id(), RunSpec(run_id="r", code="1"))
    with pytest.raises(RunNotFound):
        await agent.read(spec.session_id, "nope", after=0)


async def test_an_interrupt_reaches_a_kernel_that_is_still_starting(agent: LocalAgent) -> None:
    """1. the kernel dies; 2. a run is accepted by the fresh one; 3. it is interrupted as soon as it has begun."""
    spec = a_spec()
    await agent.launch(spec)
    await run(agent, spec.session_id, "import os; os._exit(1)")

    await agent.start(spec.session_id, RunSpec(run_id="loop", code="while True: pass"))
    await agent.read(spec.session_id, "loop", after=0, wait_s=10)
    await agent.interrupt(spec.session_id, "loop")
    await events_of(agent, spec.session_id, "loop")

    end = await end_of(agent, spec.session_id, "loop")
    assert (end.status, end.exit_code) == (RunStatus.INTERRUPTED, 130)
