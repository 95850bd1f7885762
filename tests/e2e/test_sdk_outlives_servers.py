"""The SDK goes on when the local server is killed: with the server that somebody starts, or with one that it starts."""

import os
import signal
import time
from pathlib import Path

import pytest

import roost
from roost.client.local import ensure_local_server, read_local_server, stop_local_server
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.wire.runs import EventKind

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

COUNT = """
import time
for number in range(1, 301):
    print(number)
    if number == 100:
        assert input('go on? ') == 'yes'
    time.sleep(0.005)
"""


@pytest.fixture(autouse=True)
def nothing_configured(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local server of this data folder is the one to use."""
    for name in [name for name in os.environ if name.startswith(("BACKEND_", "ROOST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROOST_DATA_DIR", str(data_dir))


@pytest.mark.parametrize("starter", ["somebody else", "the SDK"])
def test_a_run_is_read_to_its_end_across_killed_servers(data_dir: Path, starter: str) -> None:
    endpoints, seen, printed = [], [], ""

    def kill() -> None:
        endpoints.append(kill_server(data_dir))
        if starter == "somebody else":
            ensure_local_server(data_dir)

    try:
        with roost.session("class-7") as s:
            s.run("x = 20")
            run = s.start(COUNT)
            for event in run.events():
                seen.append(event)
                if event.kind is EventKind.PROMPT:
                    kill()
                    run.input("yes")
                elif event.kind is EventKind.STDOUT:
                    printed += event.data
                    if len(endpoints) == 1 and "\n150\n" in printed:
                        kill()
            value = s.run("x + 1")
            server = read_local_server(data_dir)
    finally:
        stop_local_server(data_dir)

    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert printed == "".join(f"{number}\n" for number in range(1, 301))
    assert value.text == "21"
    assert server is not None
    assert len({*endpoints, server.endpoint}) == 3


def test_files_go_both_ways_across_killed_servers(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content := os.urandom(1 << 20))

    try:
        with roost.session("class-7") as s:
            kill_server(data_dir)
            s.upload(tmp_path / "a")
            kill_server(data_dir)
            s.download("a", tmp_path / "b")
    finally:
        stop_local_server(data_dir)

    assert (tmp_path / "b").read_bytes() == content


def kill_server(data_dir: Path) -> str:
    """Kill the server, and wait for its end; where it was."""
    server = read_local_server(data_dir)
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while read_local_server(data_dir) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return server.endpoint
