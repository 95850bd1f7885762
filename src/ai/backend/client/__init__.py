from roost.client import *  # noqa: F403
from roost.client import __all__ as __all__
