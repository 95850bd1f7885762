"""The peer: a Jupyter kernel, started and used by `jupyter_client` in this process."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

TIMEOUT_S = 60.0


class PeerMissing(Exception):
    """Jupyter is not installed, or its kernel does not answer."""


def load_peer(folder: Path) -> Any:
    """The class of a kernel's manager; its files go into our folder, not into the user's home.

    Raises:
        PeerMissing: it is not installed.
    """
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        os.environ[name] = str(folder / "jupyter")
    try:
        import ipykernel  # noqa: F401 - the kernel itself
        from jupyter_client.manager import KernelManager
    except ImportError as error:
        raise PeerMissing(str(error)) from error
    return KernelManager


class JupyterKernel:
    """A kernel that has answered its first request; `close` ends it."""

    def __init__(self, folder: Path) -> None:
        try:
            self._manager = load_peer(folder)(kernel_name="python3")
            self._manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._client = self._manager.blocking_client()
            self._client.start_channels()
            self._client.kernel_info(reply=True, timeout=TIMEOUT_S)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise PeerMissing(f"its kernel does not answer: {error!r}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        pid: int = self._manager.provisioner.pid
        return pid

    def settle(self) -> None:
        """Wait until output surely arrives: the first reply does not say so. Not part of the start that is timed."""
        self._client.wait_for_ready(timeout=TIMEOUT_S)

    def execute(self) -> None:
        """`1+1`, its value, and the word that the kernel is idle again."""
        values = [content["data"]["text/plain"] for kind, content in self._run("1+1") if kind == "execute_result"]
        assert values == ["2"], values

    def written(self, code: str) -> str:
        """What code writes to its standard output."""
        return "".join(content["text"] for kind, content in self._run(code) if kind == "stream")

    def _run(self, code: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Kinds and contents of what one request brings, until the kernel is idle again and has replied."""
        request = self._client.execute(code)
        idle = False
        while not idle:
            message = self._client.get_iopub_msg(timeout=TIMEOUT_S)
            if message["parent_header"].get("msg_id") != request:
                continue
            yield message["msg_type"], message["content"]
            idle = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
        while self._client.get_shell_msg(timeout=TIMEOUT_S)["parent_header"].get("msg_id") != request:
            pass

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
