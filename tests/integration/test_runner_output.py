"""Output that comes quickly: in order, in time, and not lost (docs/protocol/runner.md §3)."""

import os
from collections.abc import Iterator

import pytest

from roost.runner.protocol import MAX_PAYLOAD, MAX_UNACKNOWLEDGED, Frame, Kind
from tests.runners import Connection, Runner, a_runner, end, text

LINES = 3000
PRINTED = "".join(f"{i}\n" for i in range(LINES))
PRINT = f"for i in range({LINES}): print(i)\n"
# The runner leaves room for one result, what is left in both pipes, and what a round takes in.
FULL = MAX_UNACKNOWLEDGED - MAX_PAYLOAD - (768 << 10)


@pytest.fixture
def runner() -> Iterator[Runner]:
    with a_runner() as runner:
        yield runner


@pytest.fixture
def agent(runner: Runner) -> Connection:
    agent = runner.connect()
    agent.resume()
    return agent


def both(frames: list[Frame]) -> str:
    return b"".join(frame.payload for frame in frames if frame.kind in (Kind.STDOUT, Kind.STDERR)).decode()


def test_many_prints_are_few_frames(agent: Connection) -> None:
    agent.start(f"for i in range(20 * {LINES}): print(i)")
    frames = agent.until_end()

    assert text(frames) == "".join(f"{i}\n" for i in range(20 * LINES))
    assert len(frames) < LINES


def test_the_last_of_many_prints_is_seen_while_the_code_computes_on(runner: Runner, agent: Connection) -> None:
    agent.start(PRINT + "import os\nwhile not os.path.exists('go'): pass")

    frames: list[Frame] = []
    while text(frames) != PRINTED:
        frames += agent.until(lambda frame: True)
    (runner.home / "go").touch()

    assert end(agent.until_end())["status"] == "ok"


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os.abort()"])
def test_what_was_printed_before_a_death_is_there(agent: Connection, death: str) -> None:
    agent.start(f"import os\n{PRINT}print('last', end='')\n{death}")
    frames = agent.until_end()

    assert (text(frames), end(frames)["status"]) == (PRINTED + "last", "kernel-died")


def test_what_is_written_to_a_descriptor_keeps_the_order_with_prints(agent: Connection) -> None:
    code = """
import os, sys, subprocess, threading
for i in range(100):
    for j in range(20): print('p', j)
    os.write(1, b'raw\\n')
    print('s')
    os.write(2, b'raw error\\n')
    print('t')
    print('error', file=sys.stderr)
    print('u', end='')
    print()
    if i % 20 == 0:
        subprocess.run(['sh', '-c', 'echo child; echo its error >&2'])
        print('v')
        thread = threading.Thread(target=print, args=('thread',))
        thread.start(); thread.join()
        pid = os.fork()
        if pid == 0:
            print('fork')
            os._exit(0)
        os.waitpid(pid, 0)
        print('w', flush=True)
"""
    agent.start(code)
    frames = agent.until_end()

    written = both(frames).splitlines()
    once = [f"p {j}" for j in range(20)] + ["raw", "s", "raw error", "t", "error", "u"]
    more = ["v", "thread", "fork", "w"]
    # A child's two streams are its own affair.
    assert [line for line in written if line not in ("child", "its error")] == ((once + more + once * 19) * 5)
    assert (written.count("child"), written.count("its error")) == (5, 5)


def test_two_streams_in_turns_keep_their_order(agent: Connection) -> None:
    agent.start(f"import sys\nfor i in range({LINES}): print(i, file=sys.stderr if i % 7 == 3 else sys.stdout)")

    assert both(agent.until_end()) == PRINTED


TELL_WHEN_IT_HAS_ENDED = """
import os, sys, threading, time
def tell(main):
    while sys._current_frames()[main].f_code.co_name != 'receive': time.sleep(0.001)
    open('ended', 'w').close()
threading.Thread(target=tell, args=(threading.get_ident(),)).start()
"""


def test_what_is_left_in_the_pipes_is_in_the_run_where_there_is_hardly_room(runner: Runner, agent: Connection) -> None:
    """1. its pipes grow; nothing is acknowledged until it is full; 2. the code ends; 3. room comes frame by frame."""
    os.mkfifo(runner.home / "ended")
    printed, size, more = 200_000, FULL, 60 << 10
    agent.start(
        f"{TELL_WHEN_IT_HAS_ENDED}for _ in range({printed // 10}): print('x' * 9)\n"
        f"os.write(1, b'x' * {size})\nos.write(2, b'y' * {more})\nNone"
    )
    frames: list[Frame] = []
    while sum(len(frame.payload) for frame in frames) < FULL - (1 << 16):
        frames += agent.until(lambda frame: True)
    with (runner.home / "ended").open():
        pass

    for number in range(1, len(frames) + 1):
        agent.send(Kind.ACK, {"frame": number})
    frames += agent.until_end()
    agent.start("print('next')", run=2)
    following = agent.until_end()

    assert (len(text(frames)), len(text(frames, Kind.STDERR))) == (printed + size, more)
    assert {frame.run for frame in frames} == {1}
    assert (text(following), {frame.run for frame in following}) == ("next\n", {2})
