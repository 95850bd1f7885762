"""`make bench` runs to its end, and fails without its peer. How fast anything was is not looked at."""

import importlib.util
import os
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
    done = bench("--starts=0", "--creates=1", "--kernels=1", "--runs=5", "--live=1")

    assert done.returncode == 0, done.stderr
    for figure in ("create a session", "1+1, compatible call"):
        [line] = [line for line in done.stdout.splitlines() if line.startswith(figure)]
        assert float(line.partition("<=")[0].split()[-1]) > 0
