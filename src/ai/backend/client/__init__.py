from roost.client import *  # noqa: F403
