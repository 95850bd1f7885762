"""`pip install roost` without extras is the client, and says what it lacks."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = ROOT / ".tools/bin/uv"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has roost from a wheel, and nothing but what it depends on."""
    if not UV.exists():
        pytest.skip("uv is missing (`make setup` brings it)")
    home = tmp_path_factory.mktemp("bare")
    steps = (
        ["venv", "--python", "/usr/bin/python3", str(home / "venv")],
        ["build", "--wheel", "--build-constraint", "constraints.txt", "--out-dir", str(home), str(ROOT)],
        [
            "pip",
            "install",
            "--python",
            str(home / "venv/bin/python"),
            "-c",
            "constraints.txt",
            "--find-links",
            str(home),
        ],
    )
    for step in steps:
        wheel = [str(path) for path in home.glob("*.whl")] if step[0] == "pip" else []
        done = subprocess.run(
            [str(UV), "--quiet", *step, *wheel], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
        )
        if done.returncode and not os.environ.get("CI"):
            pytest.skip(f"the package cannot be installed here: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, done.stderr
    return home / "venv/bin"


def run(installed: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    home = {"HOME": str(installed.parent), "ROOST_DATA_DIR": str(installed.parent / "data")}
    return subprocess.run(
        [str(installed / command[0]), *command[1:]], env=home | environ, capture_output=True, text=True, timeout=60
    )


def test_without_a_server_the_first_command_says_what_to_install(installed: Path) -> None:
    done = run(installed, "roost", "run", "python", "-c", "print(6*7)")

    assert (done.returncode, done.stdout) == (1, "")
    assert "hint: pip install 'roost[server]', or set an endpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (installed.parent / "data").exists()


def test_doctor_says_what_to_install_too(installed: Path) -> None:
    done = run(installed, "roost", "doctor")

    assert done.returncode == 1
    assert "roost[server]" in done.stderr


def test_both_faces_of_the_sdk_are_there_and_nothing_of_the_server(installed: Path) -> None:
    code = "import roost, ai.backend.client.session as s; print(roost.Session is s.Session)"

    shown = run(installed, "python", "-c", code)
    packages = run(
        installed, "python", "-c", "import importlib.metadata as m; print([d.name for d in m.distributions()])"
    )

    assert shown.stdout == "True\n", shown.stderr
    assert not {"sqlalchemy", "pydantic", "alembic", "psutil"} & {name.lower() for name in eval(packages.stdout)}


def test_a_server_that_cannot_be_reached_is_an_error_with_a_hint(installed: Path) -> None:
    done = run(
        installed, "roost", "ps", BACKEND_ENDPOINT="http://127.0.0.1:1", BACKEND_ACCESS_KEY="a", BACKEND_SECRET_KEY="s"
    )

    assert done.returncode == 1
    assert "hint: is it running?" in done.stderr
