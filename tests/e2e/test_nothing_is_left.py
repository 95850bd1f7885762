"""Ten hostile sessions are destroyed at once; the host is as it was."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.agent import sandboxes
from roost.agent.interpreters import find_interpreters
from roost.agent.layout import run_dir, session_uids
from roost.agent.supervisor import LocalAgent
from roost.runtimes import cgroups
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.wire.ids import new_session_id
from roost.wire.runs import RunSpec
from roost.wire.sandboxes import SandboxSpec
from tests.agents import run

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

HOSTILE = """
import os, signal
def spawn(work):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 65):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            work()
        os._exit(0)
    os.wait()
def pause():
    while True: signal.pause()
def write():
    number = 0
    while True:
        os.makedirs(f'/home/work/w/{number % 50}', exist_ok=True)
        open(f'/home/work/w/{number % 50}/{number}', 'w').close()
        number = (number + 1) % 2000
for depth in range(1500):
    os.mkdir('d'); os.chdir('d')
os.chdir('/home/work')
os.mkdir('locked'); os.mkdir('locked/in'); open('locked/in/-rf', 'w').close(); os.chmod('locked', 0)
spawn(pause)
spawn(write)
"""


def the_host(data_dir: Path) -> dict[str, object]:
    """What a sandbox could leave behind, zombies included; run logs are meant to stay."""
    groups = cgroups.here()
    folders = {groups.v2} if groups.v2 is not None else set(groups.v1.values())
    return {
        "processes": {
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _belongs_to_a_sandbox(pid, data_dir)
        },
        "groups": {
            path.name for folder in folders if folder for path in folder.glob(f"roost-{run_dir(data_dir).name}-*")
        },
        "mounts": [mount for mount in _mounts() if not _is_of_another_test(mount, data_dir)],
        "sockets": {path.name for path in run_dir(data_dir).iterdir()},
        "files": set(_files_of(data_dir)),
    }


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def _is_of_another_test(mount: str, data_dir: Path) -> bool:
    """Whether it is the small disk of a test that another process runs meanwhile."""
    place = Path(mount.split()[4])
    return place.parent == data_dir.parent and place.name.startswith("roost-test-") and place != data_dir


def _files_of(data_dir: Path) -> list[str]:
    """Every path of the data folder but the run logs; what is deeper lies below one that is named."""
    command = ["find", str(data_dir), "-path", str(data_dir / "logs"), "-prune", "-o", "-print", "-maxdepth", "20"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return found.stdout.splitlines()


def _belongs_to_a_sandbox(pid: int, data_dir: Path) -> bool:
    """By its uid, by its arguments, or as a child of the keeper, which has no others; zombies have no arguments."""
    try:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = Path(f"/proc/{status['PPid'].strip()}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    is_kept = str(data_dir / "keeper.log").encode() in parent
    owner = int(status["Uid"].split()[0])
    is_a_sessions = os.getuid() == 0 and owner in session_uids(data_dir)
    return is_kept or is_a_sessions or str(data_dir / "sandboxes").encode() in command


async def test_ten_hostile_sessions_leave_nothing(agent: LocalAgent, data_dir: Path) -> None:
    before = the_host(data_dir)
    ids = [new_session_id() for _ in range(10)]
    interpreter = find_interpreters()[0]
    await asyncio.gather(*(agent.launch(SandboxSpec(session_id=i, interpreter=interpreter)) for i in ids))
    await asyncio.gather(*(run(agent, i, HOSTILE) for i in ids))
    for i in ids:
        await agent.start(i, RunSpec(run_id="busy", code="while True: pass"))
    assert the_host(data_dir) != before

    await asyncio.gather(*(agent.destroy(i) for i in ids))

    assert the_host(data_dir) == before


def do_nothing(*_: object) -> None:
    pass


async def wait_for_nothing(*_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("part", "switched_off", "what"),
    [
        ("remove_tree", do_nothing, "files"),
        ("remove_group", wait_for_nothing, "groups"),
        ("kill_all", wait_for_nothing, "processes"),
    ],
)
async def test_without_a_part_of_the_sweep_something_is_left(
    agent: LocalAgent,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    switched_off: Callable[..., object],
    what: str,
) -> None:
    if part == "remove_group" and not cgroups.here().controllers >= {"cpu", "memory", "pids"}:
        pytest.skip("no writable control groups here")
    before = the_host(data_dir)
    spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
    await agent.launch(spec)
    await run(agent, spec.session_id, HOSTILE)

    with monkeypatch.context() as patched:
        patched.setattr(sandboxes, part, switched_off)
        if part == "kill_all":  # what is alive keeps the rest busy
            patched.setattr(sandboxes, "remove_group", wait_for_nothing)
            patched.setattr(sandboxes, "remove_tree", do_nothing)
        await agent.destroy(spec.session_id)
        left = the_host(data_dir)
    await agent.destroy(spec.session_id)

    assert left[what] != before[what]
    assert the_host(data_dir) == before
