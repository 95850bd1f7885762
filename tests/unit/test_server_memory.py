"""Room in the server's memory, for one caller."""

import asyncio

import pytest

from roost.server.http import memory
from roost.server.http.memory import Memory
from roost.wire.errors import TooMuchHeld

MOST = 4 * memory.FREE


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST", MOST)


def test_what_is_small_is_not_counted() -> None:
    held = Memory()

    rooms = [held.room("a") for _ in range(100)]

    assert all(room.take(memory.FREE) for room in rooms)
    assert held.room("a").take(MOST)


def test_each_caller_has_its_own() -> None:
    held = Memory()
    rooms = held.room("a"), held.room("b"), held.room("a")

    assert [room.take(MOST) for room in rooms] == [True, True, False]


def test_what_is_held_counts_until_it_is_let_go_of() -> None:
    held = Memory()
    with held.room("a") as first:
        assert first.take(MOST)
        assert not held.room("a").take(memory.FREE + 1)

    assert held.room("a").take(MOST)


def test_whoever_waits_is_let_in_when_there_is_room_for_all_that_it_wants() -> None:
    held, let_in = Memory(), list[str]()
    first, large, small = held.room("a"), held.room("a"), held.room("a")
    first.take(MOST)
    large.take(MOST, lambda: let_in.append("large"))
    small.take(MOST // 2, lambda: let_in.append("small"))

    first.take(MOST // 2)
    assert let_in == ["small"]
    small.take(0)
    assert let_in == ["small"]
    first.take(0)
    assert let_in == ["small", "large"]
    assert not first.take(MOST // 2)


def test_who_leaves_waits_no_more() -> None:
    held, let_in = Memory(), list[str]()
    first = held.room("a")
    first.take(MOST)
    with held.room("a") as second:
        second.take(MOST, lambda: let_in.append("second"))
    first.take(0)

    assert let_in == []
    assert first.take(MOST)


def test_whoever_holds_something_may_hold_more_while_others_wait() -> None:
    held = Memory()
    first, second = held.room("a"), held.room("a")
    first.take(MOST // 2)

    assert not second.take(MOST, lambda: None)
    assert first.take(MOST)


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "WAIT_S", 0.05)
    held = Memory()
    first = held.room("a")
    first.take(MOST)

    with held.room("a") as second, pytest.raises(TooMuchHeld):
        await second.wait(MOST)
    first.take(0)

    assert first.take(MOST)


async def test_waiting_ends_with_the_room() -> None:
    held = Memory()
    first, second = held.room("a"), held.room("a")
    first.take(MOST)
    waiting = asyncio.create_task(second.wait(MOST))
    await asyncio.sleep(0)

    first.take(0)
    await waiting

    assert not first.take(MOST)
