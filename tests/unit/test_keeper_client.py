"""The agent's side of its conversation with the keeper."""

import asyncio
import json
import socket

from roost.runtimes.keeper import _send


class AnsweredAtOnce(socket.socket):
    """A connection whose peer has read everything and is gone before the sender looks up."""

    peer: socket.socket

    def sendmsg(self, *arguments: object) -> int:
        sent = super().sendmsg(*arguments)  # type: ignore[arg-type]
        self.heard = self.peer.recv(sent)
        self.peer.close()
        return sent


async def test_a_keeper_that_ends_with_its_last_answer_has_been_told_everything() -> None:
    ours, theirs = socket.socketpair()
    with AnsweredAtOnce(fileno=ours.detach()) as connection:
        connection.peer = theirs
        connection.setblocking(False)

        async with asyncio.timeout(10):
            await _send(connection, json.dumps({"op": "retire"}).encode(), [])

        assert json.loads(connection.heard) == {"op": "retire"}
