"""What belongs to a data folder outside of it: the folder of its sockets, the uids of its sessions."""

import hashlib
import os
import tempfile
from pathlib import Path

from roost.wire.errors import AgentError

FIRST_UID = 200_000
UIDS_PER_DATA_DIR = 50_000
UID_BLOCKS = 1_000


def run_dir(data_dir: Path) -> Path:
    """The folder of a data folder's sockets; short, since a socket's path has at most 107 bytes."""
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]
    if os.getuid() == 0:
        return Path("/run/roost") / digest
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "roost" / digest
    return Path(tempfile.gettempdir()) / f"roost-{os.getuid()}" / digest


def session_uids(data_dir: Path) -> range:
    """The uids of a data folder's sessions; two servers on one machine most likely share none."""
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).digest()
    first = FIRST_UID + int.from_bytes(digest[:4], "big") % UID_BLOCKS * UIDS_PER_DATA_DIR
    return range(first, first + UIDS_PER_DATA_DIR)


def check_owner(folder: Path) -> None:
    """Whether a folder of sockets is ours.

    Raises:
        AgentError: somebody else has made it, or could have.
    """
    for path in (folder, folder.parent):
        if path.stat().st_uid != os.getuid():
            raise AgentError(f"{path} belongs to another user", hint="set XDG_RUNTIME_DIR to a folder of your own")
