"""Why a session does not start yet, told while its creation waits."""

import contextlib
import threading
from collections.abc import Iterator

from roost.cli.output import EXPECTED, note, wants_json
from roost.client.config import get_config
from roost.client.handle import WAIT_SLICE_S, is_waiting
from roost.client.session import Session


@contextlib.contextmanager
def telling_why(name: str, owner: str | None) -> Iterator[None]:
    """While the block lasts, tell why the session of that name does not start yet, each reason once.

    Only servers of ours know, so others are not asked. What goes wrong with asking is the waiting request's to tell.
    Whoever wants JSON is told in the end.
    """
    if wants_json():
        yield
        return
    done = threading.Event()
    watching = threading.Thread(target=_watch, args=(name, owner, done), daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join(WAIT_SLICE_S)


def _watch(name: str, owner: str | None, done: threading.Event) -> None:
    # Who is served at once costs no connection more.
    if done.wait(WAIT_SLICE_S):
        return
    with contextlib.suppress(*EXPECTED), Session(config=get_config()) as api:
        told = ""
        while api.is_roost and not done.is_set():
            info = api.ComputeSession(name, owner).get_info()
            sentence = str((info.get("reason") or {}).get("sentence") or "")
            if is_waiting(info) and sentence not in ("", told) and not done.is_set():
                told = sentence
                note(f"waiting: {sentence}")
            done.wait(WAIT_SLICE_S)
