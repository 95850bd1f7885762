"""An agent in a process of its own, to be killed: `agent_process.py DATA_DIR SESSION AFTER LIMIT`.

It takes over what it finds, starts the session and its one run if they are not there, writes the keeper's pid and then
every event of the run behind AFTER to standard output, a JSON array a line, and ends after the run's end.
"""

import asyncio
import json
import sys
from pathlib import Path

import structlog

from roost.agent.interpreters import find_interpreters
from roost.agent.supervisor import LocalAgent
from roost.wire.runs import EventKind, RunSpec
from roost.wire.sandboxes import SandboxSpec

COUNT = """
import time
own = open('own.txt', 'a', buffering=1)
total = 0
while total < {limit}:
    total += 1
    own.write(f'{{total}}\\n')
    print(total)
    if total % 400 == 0:
        assert input('go on? ') == 'yes'
    time.sleep(0.002)
"""


async def main(data_dir: Path, session_id: str, after: int, limit: int) -> None:
    """Serve one reader until the run ends."""
    agent = LocalAgent(data_dir)
    await agent.open()
    await agent.launch(SandboxSpec(session_id=session_id, interpreter=find_interpreters()[0]))
    await agent.start(session_id, RunSpec(run_id="count", code=COUNT.format(limit=limit)))
    assert agent._keeper is not None
    say(["keeper", (await agent._keeper.hello())["pid"]])
    while True:
        page = await agent.read(session_id, "count", after=after, wait_s=10)
        for event in page.events:
            say([event.seq, event.kind, event.data if isinstance(event.data, str) else None])
            after = event.seq
            if event.kind is EventKind.END:
                await agent.aclose()
                return
        if page.run.prompt is not None:
            await agent.feed(session_id, "count", prompt=page.run.prompt, text="yes")


def say(message: list[object]) -> None:
    """One line that a killed process has either written or not."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
