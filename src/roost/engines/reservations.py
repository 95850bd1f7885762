"""The account that an engine keeps where no cluster keeps it: what each node has, and who holds what of it."""

from collections.abc import Mapping, Sequence

from roost.engines.base import Bundle, Engine, Node, Reservation
from roost.wire.errors import NoCapacity


class Reservations:
    """Reservations in memory, by key; all bundles of one or none. The promises are those of `Engine.reserve`."""

    def __init__(self, capacity: Mapping[str, Mapping[str, float]]) -> None:
        self._capacity = {node_id: dict(slots) for node_id, slots in capacity.items()}
        self._held: dict[str, Reservation] = {}

    def nodes(self) -> list[Node]:
        """Every node, with what is left of it."""
        return [
            Node(node_id=node_id, capacity=dict(slots), available=self._available()[node_id])
            for node_id, slots in self._capacity.items()
        ]

    def reserve(self, key: str, bundles: Sequence[Bundle]) -> Reservation:
        """Hold all bundles under a key; what the key holds already, where it does.

        Raises:
            NoCapacity: a node has not enough left, or is not there.
        """
        if key in self._held:
            return self._held[key]
        available = self._available()
        for bundle in bundles:
            if bundle.node_id not in available:
                raise NoCapacity(f"there is no node {bundle.node_id}")
            rest = available[bundle.node_id]
            for slot, need in bundle.slots.items():
                if need > rest.get(slot, 0.0):
                    raise NoCapacity(f"{slot}: {need:g} needed, {rest.get(slot, 0.0):g} left on {bundle.node_id}")
                rest[slot] -= need
        self._held[key] = Reservation(key=key, bundles=tuple(bundles))
        return self._held[key]

    def all(self) -> list[Reservation]:
        return list(self._held.values())

    def release(self, key: str) -> None:
        self._held.pop(key, None)

    def _available(self) -> dict[str, dict[str, float]]:
        rest = {node_id: dict(slots) for node_id, slots in self._capacity.items()}
        for reservation in self._held.values():
            for bundle in reservation.bundles:
                for slot, need in bundle.slots.items():
                    rest[bundle.node_id][slot] -= need
        return rest


class AccountingEngine(Engine):
    """An engine that keeps the account itself."""

    def __init__(self, capacity: Mapping[str, Mapping[str, float]]) -> None:
        self._reservations = Reservations(capacity)

    async def nodes(self) -> Sequence[Node]:
        return self._reservations.nodes()

    async def reserve(self, key: str, bundles: Sequence[Bundle]) -> Reservation:
        return self._reservations.reserve(key, bundles)

    async def reservations(self) -> Sequence[Reservation]:
        return self._reservations.all()

    async def release(self, key: str) -> None:
        self._reservations.release(key)
