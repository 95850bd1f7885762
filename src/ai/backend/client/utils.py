import sys

import roost.client.utils
from roost.client.utils import *  # noqa: F403

sys.modules[__name__] = roost.client.utils
