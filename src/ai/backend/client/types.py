import sys

import roost.client.types
from roost.client.types import *  # noqa: F403

sys.modules[__name__] = roost.client.types
