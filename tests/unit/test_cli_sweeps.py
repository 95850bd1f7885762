"""Parameter sweeps, options and lines of output, without any session."""

import pytest

from roost.cli.options import KeyValue, Mount, creation_arguments, skipped
from roost.cli.pretty import bold, lines_of
from roost.cli.sessions import run_story
from roost.cli.shell import is_incomplete, language_of, next_indent, replaced_by
from roost.cli.stats import human_size, stats_rows
from roost.cli.sweeps import Range, Stages, combine, parse_range
from roost.client.exceptions import BackendAPIError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x=case:a,b c", ("a", "b c")),
        ("x=linspace:0,1,3", ("0", "0.5", "1")),
        ("x=linspace:5,9,1", ("5",)),
        ("x=range:1,4", ("1", "2", "3")),
        ("x=range:3,0,-1", ("3", "2", "1")),
        ("x=range:0,0.3,0.1", ("0", "0.1", "0.2")),
    ],
)
def test_a_range_is_read(text: str, values: tuple[str, ...]) -> None:
    assert parse_range(text) == Range("x", values)


@pytest.mark.parametrize(
    "text",
    ["x", "x=", "=case:a", "x=case:", "x=case:a,,b", "x=range:1", "x=range:1,2,0", "x=range:2,1", "x=range:a,b",
     "x=linspace:1,2,0", "x=linspace:1,2,many", "x=range:0,inf", "x=range:0,1e9", "1x=case:a", "x=list:a"],
)  # fmt: skip
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_range(text)


def test_every_combination_is_made_and_other_names_are_left_to_the_shell() -> None:
    stages = Stages(clean="rm $x", build="make N=$x HOME=$HOME", exec="./run ${y}.txt")
    ranges = {"env_ranges": [Range("x", ("1", "2"))], "exec_ranges": [Range("y", ("a", "b"))]}

    found = combine({"A": "v$x"}, stages, **ranges)

    assert [(one.env["A"], one.stages.exec) for one in found] == [
        ("v1", "./run a.txt"),
        ("v1", "./run b.txt"),
        ("v2", "./run a.txt"),
        ("v2", "./run b.txt"),
    ]
    assert {one.stages.build for one in found} == {"make N=$x HOME=$HOME"}
    assert found[2].chosen == {"x": "2", "y": "a"}
    assert [one.env for one in combine({"A": "$x"}, stages)] == [{"A": "$x"}]
    with pytest.raises(ValueError, match="at most"):
        combine({}, stages, exec_ranges=[Range("a", ("1",) * 200), Range("b", ("1",) * 200)])


def test_options_become_arguments() -> None:
    options = {
        "mounts": [Mount().convert("data", None, None), Mount().convert("a:b=/c:d", None, None)],
        "envs": [KeyValue().convert("A=b=c", None, None)],
        "preopen": [8080],
        "max_wait": 3,
    }

    found = creation_arguments(options)

    assert (found["mounts"], found["mount_map"]) == (["data", "a:b"], {"a:b": "/c:d"})
    assert (found["envs"], found["preopen_ports"], found["max_wait"]) == ({"A": "b=c"}, [8080], 3)
    assert [skipped(text) for text in ("-", "", None, "*", "make")] == [None, None, None, "*", "make"]


def test_refusals_are_told_line_by_line() -> None:
    def told(slug: str, **more: object) -> list[str]:
        return lines_of(BackendAPIError(404, "Not Found", {"type": f"https://x/probs/{slug}", "title": "T", **more}))

    matches = [{"id": str(n), "name": "n", "status": "RUNNING"} for n in range(12)]
    assert told("session-not-found") == ["BackendAPIError: 404 Not Found - T"]
    assert len(told("too-many-sessions-matched", data={"matches": matches})) == 11
    assert told("session-already-exists", data={"existingSessionId": "i"})[1:] == ["- existing session: i"]
    assert told("image-not-found", hint="those here are a, b")[1:] == ["- those here are a, b"]
    assert told("invalid-api-params", msg="m", data={"name": "bad"})[1:] == ["- m", "- name: bad"]
    assert told("graphql-error", data=[{"message": "g"}])[1:] == ["- g"]
    assert bold("x").replace("\x1b[1m", "").replace("\x1b[22m", "") == "x"


def test_statistics_have_the_maximum_and_sizes_that_people_read() -> None:
    stats = {
        "version": 2,
        "status": "terminated",
        "mem": {"current": "1", "unit_hint": "bytes", "stats.max": "1572864"},
        "cpu_used": {"current": "812.5", "unit_hint": "msec"},
    }
    assert stats_rows(stats) == [
        {"key": "mem", "value": "1.5 MiB", "unit": ""},
        {"key": "cpu_used", "value": "812.5", "unit": "msec"},
    ]
    assert [human_size(n) for n in (1, 1 << 30, 5 << 40)] == ["1 B", "1.0 GiB", "5.0 TiB"]


def test_the_story_of_a_run_has_its_times_its_reason_and_its_cost() -> None:
    run = {
        "state": "ended",
        "accepted_at": 0.5,
        "started_at": 1,
        "status": "kernel-died",
        "exit_code": 137,
        "reason": {"sentence": "it was killed", "hint": "use less"},
        "cost": {"cpu_s": 0.25, "wall_s": 1.5, "peak_bytes": 7, "read_bytes": None, "written_bytes": 3},
    }
    assert run_story(run) == [
        "1970-01-01 00:00:00.500+00:00  accepted",
        "1970-01-01 00:00:01.000+00:00  started",
        "kernel-died, exit code 137",
        "it was killed",
        "    hint: use less",
        "cost: 0.250 s of CPU, 1.500 s in all, 7 bytes of memory at most, 3 bytes written",
    ]
    assert run_story({"state": "accepted"}) == ["accepted"]


@pytest.mark.parametrize(
    ("language", "text", "incomplete"),
    [
        ("python", "x = 1", False),
        ("python", "for i in x:", True),
        ("python", "for i in x:\n    pass", True),
        ("python", "for i in x:\n    pass\n    ", False),
        ("python", "f(1,\n", True),
        ("python", "s = '''a", True),
        ("python", "x = (1", True),
        ("python", "1 +* 2", False),
        ("python", "x = '\\d'", False),
        ("shell", "echo 'a", True),
        ("shell", "echo a \\", True),
        ("shell", "echo a \\\\", False),
        ("shell", "echo a", False),
        ("ruby", "def f", False),
    ],
)
def test_code_that_goes_on_is_told_from_code_that_is_whole(language: str, text: str, incomplete: bool) -> None:
    assert is_incomplete(language, text) is incomplete


def test_what_the_shell_needs_to_know_of_texts() -> None:
    assert [language_of(image) for image in ("python:3.11", "lablup/shell", "python")] == ["python", "shell", "python"]
    assert [next_indent(text) for text in ("if x:", "x\n  if y:  ", "  a")] == ["    ", "      ", "  "]
    assert [replaced_by(*pair) for pair in (("x = os.pa", "os.path"), ("pri", "print"), ("x ", "abc"))] == [5, 3, 0]
