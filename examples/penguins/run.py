"""Penguins in a session: three runs that share their variables, a question, a table and a chart."""

import sys
from pathlib import Path
from typing import Any

import roost
from roost.wire.runs import EventKind

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


def main() -> None:
    """Work in a session of this machine's server, which is started if it does not run."""
    with roost.session("penguins") as session:
        session.upload(HERE / "penguins.csv")
        for name, code in (("load", LOAD), ("table", TABLE), ("chart", CHART)):
            print(f"\n── {name}")
            show(session.start(code))
        chart = session.download("chart.svg", HERE / "out" / "chart.svg")
    print(f"\nthe chart is in {chart.relative_to(Path.cwd()) if chart.is_relative_to(Path.cwd()) else chart}")


def show(run: roost.Run) -> None:
    """Print what a run prints, answer what it asks, and show what it cost."""
    for event in run.events():
        if event.kind in (EventKind.STDOUT, EventKind.STDERR):
            print(event.data, end="", flush=True)
        elif event.kind is EventKind.PROMPT:
            run.input(ask(event.data["text"]))
        elif event.kind is EventKind.END:
            show_cost(event.data)


def ask(question: str) -> str:
    """Ask on the terminal; without one the example answers itself."""
    if sys.stdin.isatty():
        return input(question) or DEFAULT_ANSWER
    print(f"{question}{DEFAULT_ANSWER}")
    return DEFAULT_ANSWER


def show_cost(end: dict[str, Any]) -> None:
    """One line for one run; a run that failed ends the example."""
    cost = end["cost"]
    print(f"   {end['status']}: {cost['cpu_s'] * 1000:.1f} ms of CPU, {cost['peak_bytes'] / 2**20:.1f} MiB at most")
    if end["exit_code"]:
        raise SystemExit(end["exit_code"])


if __name__ == "__main__":
    main()
