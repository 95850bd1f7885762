"""Packages for tests: wheels made here, and whether a package index can be reached."""

import asyncio
import base64
import functools
import hashlib
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from roost.agent.uv import set_up_uv


def a_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str] | None = None,
    *,
    requires: str = ">=3",
    depends: str = "",
) -> None:
    """Write a wheel of a module that knows its version.

    Args:
        files: come along, by their places in site-packages.
        requires: the versions of Python that it is for.
        depends: what it needs beside it.
    """
    content = {f"{name}.py": f"version = {version!r}\n", **(files or {})}
    info = f"{name}-{version}.dist-info"
    content[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {requires}\n"
    )
    if depends:
        content[f"{info}/METADATA"] += f"Requires-Dist: {depends}\n"
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {name}:main\n"
    record = "".join(f"{path},sha256={_hash(text)},{len(text.encode())}\n" for path, text in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in content.items():
            wheel.writestr(path, text)


def only_wheels_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uv find nothing but the wheels in a folder, by what pip is told."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@functools.cache
def unreachable_index() -> str:
    """Why the package index cannot be reached; empty where it can."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "requirements.txt").write_text("six\n")
        uv = asyncio.run(set_up_uv(Path(folder, "cache"), os.environ, "/usr/bin/python3"))
        argv = [uv.program, "pip", "compile", *uv.options, "--quiet", "requirements.txt"]
        asked = subprocess.run(
            argv, env=uv.environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
    return asked.stderr.strip() if asked.returncode != 0 else ""


async def need_index() -> None:
    """Skip the test where there is no package index."""
    if why := await asyncio.to_thread(unreachable_index):
        pytest.skip(f"the package index cannot be reached: {why}")
