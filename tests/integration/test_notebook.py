"""A notebook's worth of real work: numpy, pandas and matplotlib in an image that is built here."""

import base64
import json
import os
from pathlib import Path

import pytest

from tests.packages import need_index
from tests.servers import Caller

SHOWN = os.environ.get("ROOST_SHOW_FIGURES")
"""A folder to look at the figures in."""
CELLS = (
    "import numpy as np, pandas as pd, matplotlib.pyplot as plt",
    """
rng = np.random.default_rng(7)
species = np.repeat(['Adelie', 'Chinstrap', 'Gentoo'], 40)
bill = rng.normal(np.repeat([38.8, 48.8, 47.5], 40), 2.5)
mass = rng.normal(np.repeat([3700, 3733, 5076], 40), 350)
penguins = pd.DataFrame({'species': species, 'bill_mm': bill, 'mass_g': mass})
penguins.groupby('species').mean().round(1)
""",
    """
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
for name, group in penguins.groupby('species'):
    left.scatter(group['bill_mm'], group['mass_g'], s=12, label=name)
left.set(xlabel='bill (mm)', ylabel='mass (g)', title='Penguins')
left.legend()
penguins['mass_g'].hist(ax=right, bins=20)
right.set_title('Mass')
plt.show()
""",
    "print(np.linalg.inv(np.array([[2., 0.], [0., 4.]])).tolist())",
    "penguins.to_csv('penguins.csv', index=False); len(pd.read_csv('penguins.csv'))",
    "penguins['weight']",
)


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a session `class-7` of an image with what people import first."""
    await need_index()
    messages = await server.build("analysis:1", "numpy\npandas\nmatplotlib\n")
    assert messages[-1].event == "image", messages[-3:]
    made = await server("POST", "/session", {"name": "class-7", "image": "analysis:1"})
    assert made.status == 201, made.body
    return server


async def test_a_notebook_shows_its_tables_and_figures(session: Caller) -> None:
    cells = [await session.finished("class-7", cell) for cell in CELLS]
    body = {"run_id": "one", "code": "plt.plot([1, 2]); plt.show()"}
    assert (await session("POST", "/session/class-7/runs", body)).status == 201
    events = [(event.event, json.loads(event.data)) for event in await session.events("class-7", "one")]

    imports, table, figure, printed, count, failed = (cell["console"] for cell in cells)
    assert imports == []
    assert [kind for kind, _ in table] == ["html"]
    assert all(name in table[0][1] for name in ("<table", "Adelie", "bill_mm"))
    [[kind, [mime, content]]] = figure
    assert (kind, mime) == ("media", "image/png")
    image = base64.b64decode(content.partition(",")[2])
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(image[16:20], "big") > 600  # wide enough for two plots
    assert printed == [["stdout", "[[0.5, 0.0], [0.0, 0.25]]\n"]]
    assert count == [["stdout", "120"]]
    assert "KeyError: 'weight'" in "".join(text for _, text in failed)
    assert [kind for kind, _ in events] == ["started", "display", "end"]
    assert events[1][1]["mime"].keys() == {"text/plain", "image/png"}
    if SHOWN:
        Path(SHOWN, "penguins.png").write_bytes(image)


async def test_ipythons_magics_are_there_where_it_is_installed(server: Caller) -> None:
    await need_index()
    messages = await server.build("ipy", "ipython\n")
    assert messages[-1].event == "image", messages[-3:]
    await server("POST", "/session", {"name": "class-7", "image": "ipy"})

    await server.finished("class-7", "answer = 42")
    who = await server.finished("class-7", "%who")
    captured = await server.finished("class-7", "%%capture out\nprint('hidden')")
    shown = await server.finished("class-7", "out.stdout")
    own = await server.finished("class-7", "%time answer + 1")

    assert who["console"][0][1].split() == ["answer"]
    assert (captured["console"], shown["console"]) == ([], [["stdout", "'hidden\\n'"]])
    assert "Wall time:" in own["console"][0][1]
