"""Everything that the platform can do, in one hand."""

from dataclasses import dataclass

from roost.server.auth.base import Authenticator
from roost.server.auth.keys import KeyRing
from roost.server.services.files import Files
from roost.server.services.images import Images
from roost.server.services.runs import Runs
from roost.server.services.sessions import Sessions
from roost.server.services.templates import Templates


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What the HTTP layer is given."""

    authenticators: tuple[Authenticator, ...]
    """Asked in order; the first that recognises a request decides."""
    keys: KeyRing
    images: Images
    sessions: Sessions
    runs: Runs
    files: Files
    templates: Templates
