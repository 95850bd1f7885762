"""Files of a session's home, within the limits of the compatible API (spec/rest-sessions.md §9 to §11)."""

from collections.abc import Sequence

from roost.engines.base import Engine
from roost.server.domain.sessions import Session
from roost.wire.agent import SessionFiles
from roost.wire.errors import InvalidParameters, SessionNotRunning
from roost.wire.sandboxes import FileInfo
from roost.wire.sessions import SessionState

MAX_FILES_UP = 20
MAX_FILES_DOWN = 5
MAX_BYTES = 1 << 20
"""Of one uploaded file, exclusive; of one downloaded archive, inclusive."""


class Files:
    """What can be done with a running session's files."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def upload(self, session: Session, files: Sequence[tuple[str, bytes]]) -> None:
        """Write files by name.

        Raises:
            InvalidParameters: too many, too large or without a name; nothing is written then.
            Forbidden: a name leads out of the home.
        """
        if len(files) > MAX_FILES_UP:
            raise InvalidParameters(f"{len(files)} files at once", hint=f"send at most {MAX_FILES_UP}")
        for name, content in files:
            if not name:
                raise InvalidParameters("a file has no name", hint="name each part with `filename`")
            if len(content) >= MAX_BYTES:
                raise InvalidParameters(f"{name} has {len(content)} bytes", hint=f"each file must be below {MAX_BYTES}")
        home = await self._files(session)
        for name, content in files:
            await home.write(name, content)

    async def archives(self, session: Session, paths: Sequence[str]) -> list[bytes]:
        """A tar of each path, in order.

        Raises:
            InvalidParameters: none or too many paths; FileNotFoundInSession, Forbidden, LimitExceeded as they say.
        """
        if not 1 <= len(paths) <= MAX_FILES_DOWN:
            raise InvalidParameters(f"{len(paths)} paths at once", hint=f"ask for 1 to {MAX_FILES_DOWN}")
        home = await self._files(session)
        return [await home.archive(path, max_bytes=MAX_BYTES) for path in paths]

    async def read(self, session: Session, path: str) -> bytes:
        """The content of one file."""
        return await (await self._files(session)).read(path, max_bytes=MAX_BYTES)

    async def list(self, session: Session, path: str) -> list[FileInfo]:
        """The entries of a folder."""
        return await (await self._files(session)).list(path)

    async def home(self, session: Session) -> SessionFiles:
        """The files themselves, without the limits of the compatible API."""
        return await self._files(session)

    async def _files(self, session: Session) -> SessionFiles:
        if session.state is not SessionState.RUNNING or session.node_id is None:
            raise SessionNotRunning(f"session {session.name} is {session.state}")
        return (await self._engine.agent(session.node_id)).files(session.id)
