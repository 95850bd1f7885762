import sys

import roost.client.func.session
from roost.client.func.session import *  # noqa: F403

sys.modules[__name__] = roost.client.func.session
