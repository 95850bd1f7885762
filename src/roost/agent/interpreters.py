"""The interpreters of this machine's `/usr` that host images are made of."""

import re
from pathlib import Path

from roost.wire.sandboxes import Interpreter

_PYTHON = re.compile(r"python3\.(\d+)")


def find_interpreters(folder: Path = Path("/usr/bin")) -> list[Interpreter]:
    """Every Python from 3.8 on, newest first; those outside `/usr` are not seen by a sandbox."""
    found = {int(match[1]) for path in folder.iterdir() if (match := _PYTHON.fullmatch(path.name))}
    return [
        Interpreter(language="python", version=f"3.{minor}", path=str(folder / f"python3.{minor}"))
        for minor in sorted(found, reverse=True)
        if minor >= 8
    ]
