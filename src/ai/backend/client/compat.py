import sys

import roost.client.compat
from roost.client.compat import *  # noqa: F403

sys.modules[__name__] = roost.client.compat
