"""The habits of notebooks, without IPython (docs/protocol/runner.md §3)."""

from collections.abc import Iterator

import pytest

from roost.runner.magics import rewritten
from roost.runner.protocol import Kind
from tests.runners import Connection, a_runner, end, text


@pytest.fixture
def agent() -> Iterator[Connection]:
    with a_runner() as runner:
        connection = runner.connect()
        connection.resume()
        yield connection


def run(agent: Connection, code: str, number: int = 1) -> tuple[str, str, str]:
    agent.start(code, number)
    frames = agent.until_end()
    return text(frames), text(frames, Kind.STDERR), end(frames)["status"]


@pytest.mark.parametrize(
    "code",
    ["x = 10\nx %\\\n3", "print(5\n  %3)", "s = '''\n!ls\n%cd\n'''", "if x:\n    pass"],
)
def test_python_is_left_alone(agent: Connection, code: str) -> None:
    assert run(agent, "x = 4\n" + code)[1:] == ("", "ok")


def test_nothing_to_rewrite_is_told() -> None:
    assert rewritten("def f(:\n    pass") is None


def test_a_command_is_run_between_the_lines(agent: Connection) -> None:
    code = (
        "for i in range(2):\n    print(i)\n    !echo shell {i + 1} $i $HOME_OF\nprint(_exit_code)\n!exit 3\n_exit_code"
    )

    out, err, status = run(agent, code)

    assert (out, err, status) == ("0\nshell 1 0\n1\nshell 2 1\n0\n", "", "ok")


def test_the_lines_of_a_command_are_a_value(agent: Connection) -> None:
    assert run(agent, "names = !printf 'a\\nb\\n'\nprint(names)")[0] == "['a', 'b']\n"


def test_the_folder_and_the_environment_last(agent: Connection) -> None:
    run(agent, "%cd /usr\n%env COLOR=red", 1)

    assert run(agent, "import os\nprint(os.getcwd(), os.environ['COLOR'])\n!echo $COLOR", 2)[0] == "/usr red\nred\n"


def test_code_is_timed(agent: Connection) -> None:
    value, _, _ = run(agent, "x = %time sum(range(10))\nprint(x)", 1)
    cell, _, _ = run(agent, "%%time\ny = 1\ny + 1\n", 2)
    loop, _, _ = run(agent, "%timeit -n 10 -r 2 y + 1", 3)

    assert value.endswith("45\n")
    assert "Wall time:" in value
    assert "Wall time:" in cell
    assert "mean ± std. dev. of 2 runs, 10 loops each" in loop


def test_a_cell_may_be_a_script(agent: Connection) -> None:
    assert run(agent, "%%bash\nx=5\necho $x", 1)[0] == "5\n"
    assert run(agent, "%%sh\nexit 3", 2)[2] == "error"


def test_a_mistake_is_told_as_it_was_written(agent: Connection) -> None:
    _, err, status = run(agent, "!echo hi\ndef f(:\n    pass")

    assert status == "error"
    assert "def f(:" in err
    assert "__roost" not in err


def test_an_unknown_magic_says_what_is_missing(agent: Connection) -> None:
    _, err, status = run(agent, "%nosuchmagic 1")

    assert status == "error"
    assert "IPython" in err


def test_an_interrupt_reaches_the_command(agent: Connection) -> None:
    agent.start("!python3 -uc 'import time; print(1); time.sleep(60)'", 1)
    agent.until(lambda frame: frame.kind == Kind.STDOUT)
    agent.send(Kind.INTERRUPT, {}, run=1)

    assert end(agent.until_end())["status"] == "interrupted"
