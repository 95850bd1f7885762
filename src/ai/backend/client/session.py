import sys

import roost.client.session
from roost.client.session import *  # noqa: F403

sys.modules[__name__] = roost.client.session
