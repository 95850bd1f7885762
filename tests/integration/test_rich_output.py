"""What code in a sandbox shows, from the kernel to events, console and SDK."""

import base64
import itertools
import json
from typing import Any

import pytest

from roost.agent.interpreters import find_interpreters
from roost.agent.supervisor import LocalAgent
from roost.client.results import Result, result_of
from roost.wire.ids import new_session_id
from roost.wire.mime import NOTE
from roost.wire.runs import Event, EventKind, RunSpec
from roost.wire.sandboxes import SandboxSpec
from tests.agents import events_of, output, run
from tests.servers import Caller

PNG = b"\x89PNG\r\n\x1a\n"
RICH = """
class Rich:
    def __init__(self, name): self.name = name
    def __repr__(self): return self.name
    def _repr_html_(self): return f'<b>{self.name}</b>'
    def _repr_png_(self): return b'\\x89PNG\\r\\n\\x1a\\n'
"""
FAKE_MATPLOTLIB = {
    "__init__.py": "",
    "figure.py": """
class Figure:
    def __init__(self, number): self.number = number
    def __repr__(self): return f'<Figure {self.number}>'
    def savefig(self, file, format, **_):
        if self.number == 99: raise ValueError('cannot draw this')
        file.write(f'{format} {self.number}'.encode())
""",
    "pyplot.py": """
import os
from .figure import Figure
assert os.environ['MPLBACKEND'] == 'Agg'
figures = {}
def figure(number): return figures.setdefault(number, Figure(number))
def get_fignums(): return sorted(figures)
def close(which):
    for number in list(figures):
        if which == 'all' or which is figures[number]: del figures[number]
def show(): raise RuntimeError('there is no screen')
""",
}


@pytest.fixture
async def sandbox(agent: LocalAgent) -> str:
    spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
    await agent.launch(spec)
    return spec.session_id


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a running session `class-7`."""
    assert (await server("POST", "/session", {"name": "class-7", "image": "python"})).status == 201
    return server


def of_kind(events: list[Event], kind: EventKind) -> list[Any]:
    return [event.data for event in events if event.kind is kind]


async def test_a_value_is_told_in_all_its_types(agent: LocalAgent, sandbox: str) -> None:
    events = await run(agent, sandbox, f"{RICH}\nRich('a')")

    mime = {"text/html": "<b>a</b>", "image/png": base64.b64encode(PNG).decode()}
    assert of_kind(events, EventKind.RESULT) == [{"text": "a", "mime": mime}]
    result: Result = result_of(events)
    assert (result.text, result.html, result.png) == ("a", "<b>a</b>", PNG)
    assert result.display == [{"text/plain": "a"} | mime]


async def test_displays_keep_their_place_among_what_is_written(agent: LocalAgent, sandbox: str) -> None:
    code = f"""{RICH}
import sys
for number in range(50):
    print(number)
    display(Rich('x' * 300_000 if number == 25 else str(number)))
    print(number, file=sys.stderr)
"""

    events = await run(agent, sandbox, code)

    kinds = [kind for kind, _ in itertools.groupby(event.kind for event in events)]
    assert kinds[1:-1] == [EventKind.STDOUT, EventKind.DISPLAY, EventKind.STDERR] * 50


async def test_an_update_takes_the_place_of_what_was_shown(agent: LocalAgent, sandbox: str) -> None:
    code = """
shown = display(1, display_id=True)
display(2, display_id='mine')
shown.update(3)
update_display(4, display_id='mine')
"""

    events = await run(agent, sandbox, code)

    displays = of_kind(events, EventKind.DISPLAY)
    assert [one["mime"]["text/plain"] for one in displays] == ["1", "2", "3", "4"]
    assert [one.get("update", False) for one in displays] == [False, False, True, True]
    assert displays[0]["display_id"] == displays[2]["display_id"]
    assert [bundle["text/plain"] for bundle in result_of(events).display] == ["3", "4"]


@pytest.mark.parametrize("char", ["a", "\\x00", "\\x7f", "\\u20ac", "\\U0001f600", "\\ud800"])
async def test_what_is_too_long_is_left_out_with_a_note_and_the_session_lives(
    agent: LocalAgent, sandbox: str, char: str
) -> None:
    code = f"""
class Huge:
    def __repr__(self): return '{char}' * 5_000_000
    def _repr_html_(self): return '{char}' * 1_100_000
    def _repr_svg_(self): return '{char}' * 90_000
    def _repr_png_(self): return bytes(50_000_000)
display(Huge())
kept = 1
Huge()
"""

    events = await run(agent, sandbox, code)
    after = await run(agent, sandbox, "kept")

    for mime in (of_kind(events, EventKind.DISPLAY)[0]["mime"], of_kind(events, EventKind.RESULT)[0]["mime"]):
        assert "image/svg+xml" in mime
        assert [one["mime"] for one in json.loads(mime[NOTE])["dropped"]] == ["text/html", "image/png"]
    assert of_kind(events, EventKind.RESULT)[0]["text"].endswith("…")
    assert of_kind(after, EventKind.RESULT) == [{"text": "1", "mime": {}}]


async def test_many_long_displays_arrive_whole_and_in_order(agent: LocalAgent, sandbox: str) -> None:
    code = (
        f"{RICH}\nfor number in range(12): display(Rich(str(number) + 'a' * 60_000 + '\\x7f' * 5_000)); print(number)"
    )

    events = await run(agent, sandbox, code)

    displays = of_kind(events, EventKind.DISPLAY)
    assert [one["mime"]["text/html"].lstrip("<b>").partition("a")[0] for one in displays] == [str(n) for n in range(12)]
    assert output(events) == "".join(f"{number}\n" for number in range(12))


async def test_hostile_objects_do_not_end_a_run(agent: LocalAgent, sandbox: str) -> None:
    code = """
class Meta(type):
    def __getattr__(cls, name): raise RuntimeError(name)
class Hostile(metaclass=Meta):
    def __repr__(self): raise ValueError('no')
    def _repr_html_(self): return 1 / 0
    def _repr_svg_(self): return 5
    def _repr_json_(self): return iter(int, 1)
    def _repr_latex_(self): raise RecursionError
    def _repr_mimebundle_(self, **_): return {5: 'a', 'a/b': object(), 'text/plain': 'not this'}
display(Hostile())
Hostile()
"""

    events = await run(agent, sandbox, code)

    says = "<an object of Hostile, whose repr raised ValueError>"
    assert of_kind(events, EventKind.DISPLAY) == [{"mime": {"text/plain": says}}]
    assert of_kind(events, EventKind.RESULT) == [{"text": says, "mime": {}}]
    assert events[-1].data["status"] == "ok"


async def test_a_method_without_end_can_be_interrupted(agent: LocalAgent, sandbox: str) -> None:
    code = """
class Endless:
    def _repr_html_(self):
        print('begun')
        while True: pass
kept = 1
Endless()
"""
    await agent.start(sandbox, RunSpec(run_id="endless", code=code))
    page = await agent.read(sandbox, "endless", after=1, wait_s=20)
    await agent.interrupt(sandbox, "endless")
    events = await events_of(agent, sandbox, "endless")
    after = await run(agent, sandbox, "kept")

    assert output(page.events).startswith("begun")
    assert events[-1].data["status"] == "interrupted"
    assert of_kind(after, EventKind.RESULT) == [{"text": "1", "mime": {}}]


async def test_what_threads_and_children_display_is_not_lost(agent: LocalAgent, sandbox: str) -> None:
    code = """
import os, threading
def show(name):
    for _ in range(20): display(name * 20_000)
threads = [threading.Thread(target=show, args=(name,)) for name in 'abc']
for thread in threads: thread.start()
for thread in threads: thread.join()
if os.fork() == 0:
    display('child')
    os._exit(0)
os.wait()
None
"""

    events = await run(agent, sandbox, code)

    texts = [one["mime"]["text/plain"] for one in of_kind(events, EventKind.DISPLAY)]
    assert sorted(texts) == sorted(repr(name * 20_000) for name in "abc" for _ in range(20))
    assert output(events) == "'child'\n"
    assert events[-1].data["status"] == "ok"


async def test_what_was_displayed_before_the_interpreter_died_is_there(agent: LocalAgent, sandbox: str) -> None:
    events = await run(agent, sandbox, f"import os\n{RICH}\ndisplay(Rich('x' * 200_000))\nos._exit(3)")

    [shown] = of_kind(events, EventKind.DISPLAY)
    assert shown["mime"]["text/html"] == f"<b>{'x' * 200_000}</b>"
    assert (events[-1].data["status"], events[-1].data["exit_code"]) == ("kernel-died", 3)


async def test_an_error_has_its_frames_as_data(agent: LocalAgent, sandbox: str) -> None:
    await run(agent, sandbox, "def divide(by):\n    return 1 / by", run_id="first")

    events = await run(agent, sandbox, "import json\ndivide(0)")
    other = await run(agent, sandbox, "x = 1\nx +")
    library = await run(agent, sandbox, "json.loads('{')")
    deep = await run(agent, sandbox, "def again(): again()\nagain()")

    [error] = of_kind(events, EventKind.ERROR)
    assert (error["name"], error["value"]) == ("ZeroDivisionError", "division by zero")
    assert error["traceback"][-1] == "ZeroDivisionError: division by zero\n"
    assert error["frames"] == [
        {"file": "<run 2>", "line": 2, "name": "<module>", "text": "divide(0)"},
        {"file": "<run 1>", "line": 2, "name": "divide", "text": "return 1 / by"},
    ]
    assert of_kind(other, EventKind.ERROR)[0]["frames"] == [
        {"file": "<run 3>", "line": 2, "name": "<module>", "text": "x +"}
    ]
    assert [one["name"] for one in of_kind(library, EventKind.ERROR)[0]["frames"]][:2] == ["<module>", "loads"]
    assert len(of_kind(deep, EventKind.ERROR)[0]["frames"]) == 32


@pytest.mark.parametrize(
    "code",
    [
        "raise type('x' * 3_000_000, (Exception,), {})('\\x00' * 3_000_000)",
        "error = SyntaxError('a'); error.filename = '\\x7f' * 3_000_000; error.lineno = 1 << 80\nraise error",
        "class M(type):\n    __name__ = 5\nclass E(Exception, metaclass=M): pass\nraise E",
        "f = 'f' * 3_000_000\nexec(compile('def ' + f + '(): 1 / 0\\n' + f + '()', '\\x01' * 3_000_000, 'exec'))",
    ],
)
async def test_no_exception_is_too_strange_to_be_told(agent: LocalAgent, sandbox: str, code: str) -> None:
    await run(agent, sandbox, "kept = 1")

    events = await run(agent, sandbox, code)
    after = await run(agent, sandbox, "kept")

    assert len(of_kind(events, EventKind.ERROR)) == 1
    assert events[-1].data["status"] == "error"
    assert of_kind(after, EventKind.RESULT) == [{"text": "1", "mime": {}}]


async def test_the_console_has_one_item_for_each_display(session: Caller) -> None:
    code = f"{RICH}\nclass Image:\n    _repr_png_ = Rich._repr_png_\nprint('a')\ndisplay(Image(), 1)\nRich('<table>')"

    result = await session.finished("class-7", code)

    image = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert result["console"] == [
        ["stdout", "a\n"],
        ["media", ["image/png", image]],
        ["stdout", "1\n"],
        ["html", "<b><table></b>"],
    ]


async def test_many_images_come_in_answers_of_bearable_size(session: Caller) -> None:
    code = "class Image:\n    def _repr_png_(self): return bytes(600_000)\nfor _ in range(6): display(Image())"
    parts = [await session.execute("class-7", code)]
    while parts[-1]["status"] != "finished":
        parts.append(await session.execute("class-7", mode="continue", run_id=parts[0]["runId"]))

    assert sum(len(part["console"]) for part in parts) == 6
    assert max(len(json.dumps(part["console"])) for part in parts) < 2_000_000


@pytest.fixture
async def plotting(session: Caller) -> Caller:
    """A session that holds a package `matplotlib` which draws nothing."""
    for name, text in FAKE_MATPLOTLIB.items():
        reply = await session("PUT", f"/session/class-7/files/matplotlib/{name}", data=text.encode())
        assert reply.status == 201
    return session


def a_figure(number: int) -> list[Any]:
    return ["media", ["image/png", f"data:image/png;base64,{base64.b64encode(f'png {number}'.encode()).decode()}"]]


async def test_open_figures_are_shown_at_the_end_of_a_run_and_closed(plotting: Caller) -> None:
    first = await plotting.finished(
        "class-7", "import matplotlib.pyplot as plt\nplt.figure(1); plt.figure(2)\nprint('end')\n7"
    )
    second = await plotting.finished("class-7", "plt.get_fignums()")

    assert first["console"] == [["stdout", "end\n7"], a_figure(1), a_figure(2)]
    assert second["console"] == [["stdout", "[]"]]


async def test_show_shows_at_once(plotting: Caller) -> None:
    code = "plt.figure(1)\nplt.show()\nprint('after')\nplt.figure(2)\nplt.show(block=True)"

    result = await plotting.finished("class-7", f"import matplotlib.pyplot as plt\n{code}")

    assert result["console"] == [a_figure(1), ["stdout", "after\n"], a_figure(2)]


async def test_a_figure_that_is_the_value_is_shown_once(plotting: Caller) -> None:
    result = await plotting.finished("class-7", "import matplotlib.pyplot as plt\nplt.figure(2)\nplt.figure(1)")

    assert result["console"] == [a_figure(1), a_figure(2)]


async def test_figures_are_shown_after_an_exception_too(plotting: Caller) -> None:
    result = await plotting.finished("class-7", "import matplotlib.pyplot as plt\nplt.figure(1)\n1 / 0")

    assert a_figure(1) in result["console"]
    assert "ZeroDivisionError" in "".join(text for kind, text in result["console"] if kind == "stderr")


async def test_a_figure_that_cannot_be_drawn_says_why(plotting: Caller) -> None:
    result = await plotting.finished("class-7", "import matplotlib.pyplot as plt\nplt.figure(99); None")

    [[kind, why], shown] = result["console"]
    assert (kind, shown) == ("stderr", ["stdout", "<Figure 99>\n"])
    assert "cannot draw this" in why


async def test_nothing_is_loaded_for_who_shows_nothing_rich(session: Caller) -> None:
    await session.finished("class-7", "import sys, os\nx = 1")

    code = "print([name for name in sys.modules if name.split('.')[-1] in ('matplotlib', 'json', 'base64', 'display')])"
    result = await session.finished("class-7", code)

    assert result["console"] == [["stdout", "[]\n"]]
