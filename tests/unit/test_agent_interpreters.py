"""Which programs of a machine become host images, in a `/usr` made for the test."""

import os
from pathlib import Path

import msgspec
import pytest

from roost.agent import interpreters
from roost.agent.doctor import describe, diagnose
from roost.agent.interpreters import Language, Survey, survey

LUA = Language("lua", ("lua5.4", "lua"), r"Lua (\d+\.\d+)", ("-v",))
JAVA = Language("java", ("java",), r'version "(\d+)', ("-version",), ("javac",))


@pytest.fixture
def usr(data_dir: Path) -> Path:
    """One with a Python."""
    (data_dir / "usr" / "bin").mkdir(parents=True)
    a_program(data_dir / "usr" / "bin" / "python3.11", "exit 1")
    return data_dir / "usr"


def a_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def names(found: Survey) -> list[str]:
    return [f"{one.language} {one.version}" for one in found.interpreters]


def test_pythons_come_first_and_the_newest_carries_the_runner_of_other_languages(usr: Path) -> None:
    a_program(usr / "bin" / "python3.9", "exit 1")
    a_program(usr / "bin" / "python3.7", "exit 1")
    a_program(usr / "local" / "bin" / "python3.12", "exit 1")
    a_program(usr / "bin" / "lua", "echo 'Lua 5.3.6  Copyright'")

    found = survey(usr, [LUA], {})

    assert names(found) == ["python 3.12", "python 3.11", "python 3.9", "lua 5.3"]
    assert found.interpreters[-1].python == str(usr / "local" / "bin" / "python3.12")
    assert found.refused == []


def test_the_version_may_be_told_on_either_stream(usr: Path) -> None:
    a_program(usr / "bin" / "java", "echo 'openjdk version \"17.0.2\"' >&2")
    a_program(usr / "bin" / "javac", "exit 1")

    assert names(survey(usr, [JAVA], {})) == ["python 3.11", "java 17"]


def test_what_a_session_could_not_use_is_refused_with_the_reason(usr: Path) -> None:
    a_program(usr / "bin" / "java", "echo 'openjdk version \"17.0.2\"' >&2")
    elsewhere = a_program(usr.parent / "opt" / "lua", "echo Lua 5.4")
    (usr / "bin" / "lua").symlink_to(elsewhere)

    found = survey(usr, [JAVA, LUA], {})

    assert names(found) == ["python 3.11"]
    assert found.refused == [
        (str(usr / "bin" / "java"), "javac is not installed"),
        (str(usr / "bin" / "lua"), f"it is {elsewhere}, outside of {usr}"),
    ]


@pytest.mark.parametrize(
    ("script", "why"),
    [("exit 3", "returned non-zero exit status 3"), ("echo no idea", "'no idea'"), ("exec sleep 60", "timed out")],
)
def test_a_program_that_does_not_tell_its_version_is_refused(
    usr: Path, script: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "PROBE_TIMEOUT_S", 0.5 if "sleep" in script else 30.0)
    a_program(usr / "bin" / "lua", script)

    [(_, reason)] = survey(usr, [LUA], {}).refused

    assert "does not tell its version" in reason
    assert why in reason


def test_a_folder_that_sessions_cannot_pass_is_named(usr: Path) -> None:
    closed = a_program(usr / "lib" / "lua" / "lua", "echo Lua 5.4").parent
    closed.chmod(0o700)
    (usr / "bin" / "lua").symlink_to(closed / "lua")

    [(path, why)] = survey(usr, [LUA], {}).refused

    assert path == str(usr / "bin" / "lua")
    assert str(closed) in why


def test_the_doctor_tells_what_was_refused() -> None:
    diagnosis = msgspec.structs.replace(diagnose(), refused=[("/usr/bin/java", "javac is not installed")])

    assert "no image of /usr/bin/java: javac is not installed" in describe(diagnosis)


def test_the_doctor_tells_for_how_many_sessions_there_are_descriptors() -> None:
    few = describe(msgspec.structs.replace(diagnose(), descriptors=4096))
    many = describe(msgspec.structs.replace(diagnose(), descriptors=1 << 20))

    assert "descriptors: enough for about 409 sessions\n  hint: raise the hard limit of open files to 20000" in few
    assert "raise the hard limit" not in many


def test_without_a_python_there_are_no_images(data_dir: Path) -> None:
    a_program(data_dir / "usr" / "bin" / "lua", "echo Lua 5.4")

    found = survey(data_dir / "usr", [LUA], {})

    assert (found.interpreters, len(found.refused)) == ([], 1)


def test_a_program_is_asked_again_only_after_it_has_changed(usr: Path) -> None:
    program = a_program(usr / "bin" / "lua", f"echo x >> {usr}/asked; echo Lua 5.4")
    known: dict[str, str] = {}

    for _ in range(3):
        survey(usr, [LUA], known)
    asked_before = (usr / "asked").read_text()
    os.utime(program, ns=(1, 1))
    survey(usr, [LUA], known)

    assert (asked_before, (usr / "asked").read_text()) == ("x\n", "x\nx\n")
