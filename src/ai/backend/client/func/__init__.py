from roost.client.func import *  # noqa: F403
