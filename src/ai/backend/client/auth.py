import sys

import roost.client.auth
from roost.client.auth import *  # noqa: F403

sys.modules[__name__] = roost.client.auth
