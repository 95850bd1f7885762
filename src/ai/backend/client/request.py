import sys

import roost.client.request
from roost.client.request import *  # noqa: F403

sys.modules[__name__] = roost.client.request
