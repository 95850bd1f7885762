"""The runner's installed copy: byte-compiled, readable by every uid, named by its content."""

import compileall
import hashlib
import os
import shutil
from pathlib import Path
from py_compile import PycInvalidationMode

import roost.runner


def install_runner(data_dir: Path) -> Path:
    """Copy the runner to `<data>/runner/<content hash>/` if it is not there yet; returns that folder."""
    source = Path(roost.runner.__file__).parent
    files = sorted(source.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:16]
    target = data_dir / "runner" / digest
    if target.exists():
        return target
    target.parent.mkdir(mode=0o755, exist_ok=True)
    making = target.with_name(f"{digest}.{os.getpid()}")
    making.mkdir(mode=0o755)
    for path in files:
        copy = shutil.copyfile(path, making / path.name)
        copy.chmod(0o644)
    compileall.compile_dir(making, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    (making / "__pycache__").chmod(0o755)
    try:
        making.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(making)
    return target
