import msgspec

from roost.engines.base import Node
from roost.server.scheduler.placement import Placement, Postponement, Refusal, Waiting, next_start, place_next

NODE = Node(node_id="local", capacity={"cpu": 4}, available={"cpu": 2})


def test_the_oldest_is_placed_where_there_is_room() -> None:
    waiting = [Waiting(session_id="1", slots={"cpu": 2}), Waiting(session_id="2", slots={"cpu": 1})]

    decision = place_next(waiting, [NODE], 0.0)

    assert isinstance(decision, Placement)
    assert (decision.session_id, decision.bundle.node_id) == ("1", "local")


def test_who_must_wait_is_told_slot_need_and_rest() -> None:
    decision = place_next([Waiting(session_id="1", slots={"cpu": 3})], [NODE], 0.0)

    assert isinstance(decision, Refusal)
    assert decision.reason.sentence == "node local has 2 of cpu left, 3 needed"
    assert place_next([], [NODE], 0.0) is None


def test_who_has_a_node_of_its_own_waits_for_that_one() -> None:
    other = Node(node_id="other", capacity={"cpu": 4}, available={"cpu": 0})
    waiting = Waiting(session_id="1", slots={"cpu": 1}, node_id="other")

    full = place_next([waiting], [NODE, other], 0.0)
    down = place_next([waiting], [NODE], 0.0)
    free = place_next([waiting], [NODE, msgspec.structs.replace(other, available={"cpu": 1})], 0.0)

    assert isinstance(full, Refusal)
    assert full.reason.sentence == "node other has 0 of cpu left, 1 needed"
    assert isinstance(down, Postponement)
    assert down.reason.sentence == "no node is up of the name other"
    assert isinstance(free, Placement)
    assert free.bundle.node_id == "other"


def test_who_is_larger_than_every_node_is_passed_by() -> None:
    decision = place_next([Waiting(session_id="1", slots={"cpu": 5})], [NODE], 0.0)

    assert isinstance(decision, Postponement)
    assert decision.reason.sentence == "no node is large enough: local has 4 of cpu in all, 5 needed"


def test_who_may_not_start_yet_is_passed_by_and_told_until_when() -> None:
    later = Waiting(session_id="1", slots={"cpu": 4}, starts_at=10.0)

    early = place_next([later], [NODE], 9.5)
    due = place_next([later], [NODE], 10.0)

    assert isinstance(early, Postponement)
    assert early.checks.failed == {"reserved_time": "it is to start at 1970-01-01T00:00:10.000000+00:00"}
    assert isinstance(due, Refusal)
    assert "reserved_time" in due.checks.passed
    assert next_start([later], 9.5) == 10.0
    assert next_start([later], 10.0) is None
