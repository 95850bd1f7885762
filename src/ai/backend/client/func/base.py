import sys

import roost.client.func.base
from roost.client.func.base import *  # noqa: F403

sys.modules[__name__] = roost.client.func.base
