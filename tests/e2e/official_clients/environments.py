"""Official clients in environments of their own, from the package index; they are run and never read."""

import fcntl
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PINS: dict[str, list[str]] = json.loads(Path(__file__).with_name("pins.json").read_text())
UV = Path(__file__).parents[3] / ".tools/bin/uv"


@cache
def python_of(version: str) -> Path:
    """The interpreter that has this client; the environment is made once and kept in the user's cache."""
    if not UV.exists():
        pytest.skip("uv is missing (`make setup` brings it)")
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roost" / "clients"
    cached.mkdir(parents=True, exist_ok=True)
    home = cached / f"{version}-{sys.version_info.major}.{sys.version_info.minor}"
    with (cached / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            _install(home, PINS[version])
    return home / "bin" / "python"


def _install(home: Path, requirements: list[str]) -> None:
    uv = [str(UV), "--quiet"]
    steps = (
        [*uv, "venv", "--clear", "--python", "/usr/bin/python3", str(home)],
        [*uv, "pip", "install", "--no-deps", "--python", str(home / "bin/python"), *requirements],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            message = f"an official client cannot be installed: {done.stderr.strip()[-300:]}"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
    (home / "complete").touch()
