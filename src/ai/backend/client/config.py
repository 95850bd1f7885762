import sys

import roost.client.config
from roost.client.config import *  # noqa: F403

sys.modules[__name__] = roost.client.config
