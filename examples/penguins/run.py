"""Penguins in a session: three runs that share their variables, a question, a table and a chart."""

import asyncio
import shutil
import signal
import sys
import tempfile
import uuid
from pathlib import Path

import psutil
import structlog

from roost.engines.base import Bundle, EngineConfig
from roost.engines.local import NODE_ID, LocalEngine
from roost.wire.agent import Agent
from roost.wire.runs import EventKind, RunEnd, RunSpec
from roost.wire.sandboxes import SandboxSpec

HERE = Path(__file__).parent
DEFAULT_ANSWER = "body_mass_g"

LOAD = """
import csv
rows = [row for row in csv.DictReader(open('penguins.csv')) if row['body_mass_g'] not in ('', 'NA')]
print(f'{len(rows)} penguins with a known weight')
"""
TABLE = """
column = input('which column shall be averaged? ')
species = sorted({row['species'] for row in rows})
means = {}
print(f"{'species':<12}{'count':>6}{'mean ' + column:>28}")
for name in species:
    values = [float(row[column]) for row in rows if row['species'] == name]
    means[name] = sum(values) / len(values)
    print(f'{name:<12}{len(values):>6}{means[name]:>28.1f}')
"""
CHART = """
scale = 400 / max(means.values())
bars = ''.join(
    f'<rect x="110" y="{20 + 40 * i}" width="{mean * scale:.0f}" height="28" fill="#4477aa"/>'
    f'<text x="100" y="{39 + 40 * i}" text-anchor="end">{name}</text>'
    f'<text x="{118 + mean * scale:.0f}" y="{39 + 40 * i}">{mean:.0f}</text>'
    for i, (name, mean) in enumerate(means.items())
)
with open('chart.svg', 'w') as file:
    file.write('<svg xmlns="http://www.w3.org/2000/svg" width="600" height="150" '
               'font-family="sans-serif" font-size="14">'
               f'<rect width="600" height="150" fill="white"/>{bars}</svg>')
print('chart.svg is written')
"""


async def main(data_dir: Path) -> None:
    """Open a node of this machine, launch one session on it, and work in it."""
    engine = LocalEngine()
    await engine.open(EngineConfig(data_dir=data_dir))
    agent = await engine.agent(NODE_ID)
    [image, *_] = await agent.interpreters()
    session_id = str(uuid.uuid4())
    await engine.reserve(session_id, [Bundle(node_id=NODE_ID, slots={"cpu": 1, "mem": 1 << 30})])
    try:
        info = await agent.launch(SandboxSpec(session_id=session_id, interpreter=image))
        print(f"session {session_id} runs under {info.runtime}, rung {int(info.isolation.rung)} of isolation")
        files = agent.files(session_id)
        await files.write("penguins.csv", (HERE / "penguins.csv").read_bytes())
        for name, code in (("load", LOAD), ("table", TABLE), ("chart", CHART)):
            await run(agent, session_id, name, code)
        target = HERE / "out" / "chart.svg"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(await files.read("chart.svg", max_bytes=1 << 20))
        print(f"\nthe chart is in {target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target}")
    finally:
        await agent.destroy(session_id)
        await engine.release(session_id)
        await engine.aclose()


async def run(agent: Agent, session_id: str, name: str, code: str) -> None:
    """Run one piece of code, print what it prints, answer what it asks, and show what it cost."""
    print(f"\n── {name}")
    await agent.start(session_id, RunSpec(run_id=name, code=code))
    seen = 0
    while True:
        page = await agent.read(session_id, name, after=seen, wait_s=30)
        for event in page.events:
            seen = event.seq
            if event.kind in (EventKind.STDOUT, EventKind.STDERR):
                print(event.data, end="")
            elif event.kind is EventKind.PROMPT:
                answer = await asyncio.to_thread(ask, event.data["text"])
                await agent.feed(session_id, name, prompt=event.data["prompt"], text=answer)
            elif event.kind is EventKind.END:
                assert page.run.end is not None
                show_cost(page.run.end)
                return


def ask(question: str) -> str:
    """Ask on the terminal; without one the example answers itself."""
    if sys.stdin.isatty():
        return input(question) or DEFAULT_ANSWER
    print(f"{question}{DEFAULT_ANSWER}")
    return DEFAULT_ANSWER


def show_cost(end: RunEnd) -> None:
    """One line for one run; a run that failed ends the example."""
    cost = end.cost
    print(f"   {end.status}: {cost.cpu_s * 1000:.1f} ms of CPU, {cost.peak_bytes / 2**20:.1f} MiB at most")
    if end.exit_code:
        raise SystemExit(end.exit_code)


def end_keeper(data_dir: Path) -> None:
    """A server would keep it; the example leaves the machine as it found it."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if len(command) > 2 and "keeper_main.py" in command[2] and str(data_dir / "keeper.log") in command:
            process.send_signal(signal.SIGKILL)
            process.wait(5)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    folder = Path(tempfile.mkdtemp(prefix="roost-penguins-"))
    folder.chmod(0o711)
    try:
        asyncio.run(main(folder))
    finally:
        end_keeper(folder)
        shutil.rmtree(folder)
