import sys

import roost.client.exceptions
from roost.client.exceptions import *  # noqa: F403

sys.modules[__name__] = roost.client.exceptions
