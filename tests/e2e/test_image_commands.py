"""`roost image` as a user types it, on a machine where nothing is configured."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.client.local import stop_local_server
from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.packages import a_wheel, only_wheels_of

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)


@pytest.fixture(autouse=True)
def bare(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing runs; there are wheels of `tool`. The server that the test starts is stopped."""
    for name in [name for name in os.environ if name.startswith(("BACKEND_", "ROOST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROOST_DATA_DIR", str(data_dir))
    wheels = data_dir / "wheels"
    wheels.mkdir()
    a_wheel(wheels, "tool", "1")
    only_wheels_of(wheels, monkeypatch)
    yield data_dir
    stop_local_server(data_dir)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "roost", *arguments]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False)


def test_an_image_is_built_used_named_and_removed(bare: Path) -> None:
    (bare / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["tool"]\n')

    built = command("image", "build", "analysis:1", "-p", str(bare / "pyproject.toml"), "-l", "mine=kept")
    printed = command("run", "analysis:1", "-c", "import tool; print(tool.version)")
    named = command("image", "alias", "sci", "analysis:1")
    listed = command("image", "ls")
    shown = command("image", "inspect", "sci")
    kept = command("image", "rm", "analysis:1")
    command("image", "alias", "sci", "--delete")
    removed = command("image", "rm", "analysis:1")

    assert (built.returncode, built.stdout) == (0, "analysis:1\n"), built.stderr
    assert "+ tool==1" in built.stderr
    assert (printed.returncode, printed.stdout) == (0, "1\n"), printed.stderr
    assert named.stderr == "sci is analysis:1\n"
    assert listed.stdout.splitlines()[-1].startswith("analysis:1\tsci\tenvironment\t")
    assert json.loads(shown.stdout)["labels"] == {"mine": "kept"}
    assert (kept.returncode, "sci is an alias of it" in kept.stderr) == (1, True)
    assert (removed.returncode, removed.stderr) == (0, "removed analysis:1\n")
    assert "analysis" not in command("image", "ls").stdout


def test_what_is_wrong_is_told_with_a_hint(bare: Path) -> None:
    requirements = bare / "requirements.txt"
    requirements.write_text("tool==9\n")

    unsolved = command("image", "build", "analysis:1", "-r", str(requirements))
    source = command("image", "build", "analysis:1", "-r", str(requirements), "--sdist")
    neither = command("image", "build", "analysis:1")
    absent = command("image", "rm", "absent")

    assert (unsolved.returncode, unsolved.stdout) == (1, "")
    assert "error: solving the requirements failed:" in unsolved.stderr
    assert "there is no version of tool==9" in unsolved.stderr
    assert "hint: correct the requirements" in unsolved.stderr
    assert (source.returncode, "hint: leave --sdist out" in source.stderr) == (1, True)
    assert (neither.returncode, absent.returncode) == (2, 1)
