"""`make bench` runs to its end, and fails without its peer. How fast anything was is not looked at."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def bench(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *options],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_benchmark_fails_where_the_peer_is_missing(tmp_path: Path) -> None:
    (tmp_path / "jupyter_client.py").write_text("raise ImportError('not here')")

    done = bench(PYTHONPATH=str(tmp_path))

    assert done.returncode == 1
    assert "the peer did not run" in done.stderr


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ipykernel", "jupyter_client"))),
    reason="the peer is not installed: `make bench` installs it",
)
def test_the_benchmark_prints_ratios_to_the_peer() -> None:
    small = ("--rounds=1", "--output=4", "--lines=1", "--file=2", "--rate=4")
    done = bench("--starts=0", "--creates=1", "--kernels=1", "--runs=5", "--live=1", *small)

    assert done.returncode == 0, done.stderr
    for figure in (
        "create a session",
        "sessions, 4 at once",
        "1+1, compatible call",
        "output, print of 100 bytes",
        "upload",
        "download",
        "idle session, PSS",
    ):
        [line] = [line for line in done.stdout.splitlines() if line.startswith(figure)]
        assert float(re.split("ratio|[<>]=", line)[0].split()[-1]) > 0
    for figure in ("output, large writes  ", "output, large writes, SDK", "server's growth in output, RSS"):
        [line] = [line for line in done.stdout.splitlines() if line.startswith(figure)]
        assert line.removeprefix(figure).split()[0] == "1"
