import sys

import roost.client.versioning
from roost.client.versioning import *  # noqa: F403

sys.modules[__name__] = roost.client.versioning
