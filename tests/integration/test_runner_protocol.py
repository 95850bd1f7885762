"""The runner alone, spoken to frame by frame (docs/protocol/runner.md §2)."""

from collections.abc import Iterator

import pytest

from roost.runner.protocol import MAX_PAYLOAD, MAX_UNACKNOWLEDGED, Kind, encode, encode_json
from tests.runners import Runner, a_runner, end, text

# The runner leaves room for one result, what is left in both pipes, and what a round takes in.
FULL = MAX_UNACKNOWLEDGED - MAX_PAYLOAD - (768 << 10)


@pytest.fixture
def runner() -> Iterator[Runner]:
    with a_runner() as runner:
        yield runner


def test_a_run_is_told_in_dense_frames(runner: Runner) -> None:
    agent = runner.connect()

    hello = agent.resume()
    agent.start("import os; os.write(1, os.environ['A'].encode()); 6 * 7")
    frames = agent.until_end()

    assert (hello["protocol"], hello["last"], hello["seen"], hello["generation"]) == (1, 0, 0, 1)
    assert [frame.kind for frame in frames] == [Kind.STARTED, Kind.STDOUT, Kind.RESULT, Kind.END]
    assert [frame.frame for frame in frames] == [1, 2, 3, 4]
    assert {frame.run for frame in frames} == {1}
    assert (text(frames), end(frames)["status"]) == ("b", "ok")


def test_a_number_that_was_seen_is_not_run_again(runner: Runner) -> None:
    agent = runner.connect()
    agent.resume()

    agent.start("print(1)")
    agent.start("print(1)")
    agent.start("print(2)", run=2)
    frames = agent.until(lambda frame: (frame.kind, frame.run) == (Kind.END, 2))

    assert text(frames) == "1\n2\n"


def test_what_was_acknowledged_is_forgotten_and_the_rest_comes_again(runner: Runner) -> None:
    first = runner.connect()
    first.resume()
    first.start("print(1)\nimport sys\nprint(2, file=sys.stderr)\nprint(3)")
    frames = first.until_end()

    first.send(Kind.ACK, {"frame": 2})
    second = runner.connect()
    hello = second.resume(after=1)
    again = second.until_end()
    third = runner.connect()
    third.resume(after=4)
    rest = third.until_end()

    assert (hello["last"], hello["seen"]) == (len(frames), 1)
    # The acknowledgement may come behind the second connection's resume.
    assert again in (frames[1:], frames[2:])
    assert rest == frames[4:]
    assert first.receive() is None


def test_the_newest_connection_wins_and_an_older_generation_does_not(runner: Runner) -> None:
    first, second, old = runner.connect(), runner.connect(), runner.connect()
    first.resume(generation=2)
    second.resume(generation=3)

    old.send(Kind.RESUME, {"after": 0, "generation": 2})

    assert first.receive() is None
    assert old.receive() is None
    second.start("print('served')")
    assert text(second.until_end()) == "served\n"


@pytest.mark.parametrize(
    "first",
    [
        encode_json(Kind.START, 0, 1, {"code": "print(1)"}),
        encode(Kind.RESUME, 0, 0, b"{"),
        encode(Kind.RESUME, 0, 0, b"[]"),
        encode(Kind.RESUME, 0, 0, b"[" * 100_000),
        encode(Kind.RESUME, 0, 0, b"{}"),
        encode(Kind.RESUME, 0, 0, b'{"after": "x", "generation": 1}'),
        encode(200, 0, 0, b"{}"),
        b"\xff" * 17,
        bytes(17),
    ],
    ids=["no resume", "no json", "no object", "deep", "no fields", "wrong field", "unknown", "too long", "too short"],
)
def test_a_connection_that_breaks_the_protocol_is_closed_and_hinders_nobody(runner: Runner, first: bytes) -> None:
    agent, hostile = runner.connect(), runner.connect()
    agent.resume()

    hostile.socket.sendall(first)

    assert hostile.receive() is None
    agent.start("print('served')")
    assert text(agent.until_end()) == "served\n"


def test_a_full_buffer_blocks_the_kernel_and_a_reconnection_loses_nothing(runner: Runner) -> None:
    """1. a run prints 12 MiB, nothing is acknowledged; 2. another agent comes; 3. that one acknowledges."""
    lines = [f"{i:0127}\n" for i in range(12 << 13)]
    first = runner.connect()
    first.resume()
    first.start(f"for i in range({len(lines)}): print(f'{{i:0127}}')")
    held = 0
    while held < FULL:
        frame = first.receive()
        assert frame is not None
        held += len(frame.payload) + 17

    second = runner.connect()
    hello = second.resume()
    kept = second.until(lambda frame: frame.frame == hello["last"])
    third = runner.connect()
    still = third.resume()["last"]
    again = third.until(lambda frame: frame.frame == still)
    frames = list(again)
    while frames[-1].kind != Kind.END:
        third.send(Kind.ACK, {"frame": frames[-1].frame})
        frames += third.until(lambda frame: True)

    assert sum(len(frame.payload) + 17 for frame in again) <= MAX_UNACKNOWLEDGED
    assert (kept, hello["last"]) == (again, still)
    assert [frame.frame for frame in frames] == list(range(1, len(frames) + 1))
    assert text(frames) == "".join(lines)


def test_it_goes_on_without_an_agent(runner: Runner) -> None:
    first = runner.connect()
    first.resume()
    first.start("import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('alone')")
    first.until(lambda frame: frame.kind == Kind.STARTED)
    first.socket.close()

    (runner.home / "go").touch()
    second = runner.connect()
    second.resume(after=1, generation=2)

    assert text(second.until_end()) == "alone\n"
