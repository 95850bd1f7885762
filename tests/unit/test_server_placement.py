from roost.engines.base import Node
from roost.server.scheduler.placement import Placement, Refusal, Waiting, place_next

NODE = Node(node_id="local", capacity={"cpu": 4}, available={"cpu": 2})


def test_the_oldest_is_placed_where_there_is_room() -> None:
    waiting = [Waiting(session_id="1", slots={"cpu": 2}), Waiting(session_id="2", slots={"cpu": 1})]

    decision = place_next(waiting, [NODE])

    assert isinstance(decision, Placement)
    assert (decision.session_id, decision.bundle.node_id) == ("1", "local")


def test_who_must_wait_is_told_slot_need_and_rest() -> None:
    decision = place_next([Waiting(session_id="1", slots={"cpu": 3})], [NODE])

    assert isinstance(decision, Refusal)
    assert decision.reason.sentence == "node local has 2 of cpu left, 3 needed"
    assert place_next([], [NODE]) is None
