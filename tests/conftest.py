"""What every ring of tests shares."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that every session uid can traverse; pytest's own `tmp_path` is closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="roost-test-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=os.getuid() != 0)
